"""FLOPs of real training steps as torch counts them: ours and TRL's, on the same pairs. Deterministic.

python -m bench.training.flops [SIZE] prints them as JSON, per pair, with what there is to do at least.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from bench import models
from bench.meters import count_flops
from bench.training import ours
from bench.training.task import Task
from bench.training.work import Flops, least_flops
from madpo.worker.workspace import Run


def step_task(size: str, *, batch: int = 16, micro_batch: int = 8) -> Task:
    """One optimizer step."""
    return Task(size=size, batch=batch, micro_batch=micro_batch, rounds=0)


def our_flops(task: Task, variant: str) -> Flops:
    """Of the trainer's loop over one step, the reference log-probs being there."""
    rows = ours.encode(task.pairs(), models.tokenizer(task.model.vocabulary))
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        loop = ours.make_loop(task, rows, variant=variant, run=Run(directory, ours.JOB), directory=directory)
        return count_flops(loop.execute)


def trl_flops(task: Task, variant: str) -> Flops:
    """Of TRL's training over one step, with reference log-probs computed beforehand where the variant has them."""
    from bench.peers import trl

    head = trl.responses_only() if variant == "trl_ideal" else nullcontext()
    with head, tempfile.TemporaryDirectory() as scratch:
        trainer = trl.make_trainer(task, variant, directory=Path(scratch))
        # Computes them now, where it does, and keeps what it made.
        loader = trainer.get_train_dataloader()
        trainer.get_train_dataloader = lambda: loader
        return count_flops(trainer.train)


def least(task: Task) -> Flops:
    """What a step of the task needs at least."""
    return least_flops(task.lengths(), task.model)


def table(size: str) -> dict[str, dict[str, float]]:
    """MFLOP per pair of every variant, and by how much each is over the least."""
    from bench.peers import trl

    task = step_task(size)
    counted = {"least": least(task)}
    counted |= {variant: our_flops(task, variant) for variant in ours.VARIANTS}
    counted |= {variant: trl_flops(task, variant) for variant in trl.VARIANTS}
    bottom = counted["least"]
    return {
        name: {
            "products_mflop": flops.products / task.batch / 1e6,
            "attention_mflop": flops.attention / task.batch / 1e6,
            "products_over_least": flops.products / bottom.products,
            "over_least": flops.total / bottom.total,
        }
        for name, flops in counted.items()
    }


if __name__ == "__main__":
    print(json.dumps(table(sys.argv[1] if len(sys.argv) > 1 else "tiny"), indent=2))
