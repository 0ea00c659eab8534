"""Our training step, as the trainer takes it: its loop, its policy objective, its reference log-probs, method `dpo`.

python -m bench.training.ours VARIANT TASK, a process that works in turns.

plain     padded rows and full logits, the way that all others are compared with
unshared  packed rows with a prompt for each response
packed    packed rows with every prompt once
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.lengths import TokenPair
from bench.meters import Meter, matmul_rate
from bench.training.task import Task, tokens_digest
from bench.turns import Turns
from madpo.data.tokenize import encode_response
from madpo.jobs.training import TrainingParameters
from madpo.losses.registry import get_method, parse_params
from madpo.models.packed.capability import Layout, LayoutName
from madpo.ports import ObjectStore
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.local import LocalStore
from madpo.types import Job, JobKind, JobProgress, JobState, PreferencePair
from madpo.worker.workspace import Run
from madpo_trainer.blocks import prepare_blocks
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.held_out import HeldOutEvaluation
from madpo_trainer.ledger import Ledger
from madpo_trainer.loop import TrainingLoop
from madpo_trainer.model_runner import ModelRunner, choose_layout
from madpo_trainer.objectives.policy import PolicyObjective
from madpo_trainer.ranks import OneRank
from madpo_trainer.state import TrainingState

JOB = Job("job-" + "1" * 32, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, attempt=1)

VARIANTS: dict[str, LayoutName] = {"plain": "padded", "unshared": "unshared", "packed": "packed"}


@dataclass(frozen=True)
class TaskOrder:
    """The task's order of pairs, in the place of the trainer's schedule."""

    task: Task

    @property
    def total_steps(self) -> int:
        return self.task.total_steps

    @property
    def batch_size(self) -> int:
        return self.task.batch

    def batch(self, step: int) -> list[int]:
        return self.task.batch_rows(step)

    def epoch(self, step: int, place: int = 0) -> int:
        return step // self.task.steps

    def passes(self, steps: int) -> float:
        return steps / self.task.steps


class MeasuredRun(Run):
    """A run whose every report of progress is the end of a step.

    Measured is what lies between the ends of two steps: all that the loop does for one.

    Args:
        directory: Scratch.
        task: Says how many steps make a round.
        done: Takes the measurement of a round, and when it returns, the next begins; first called after the step that
            warms up, with losses alone.
    """

    def __init__(self, directory: Path, task: Task, done: Callable[[dict[str, Any]], object]) -> None:
        super().__init__(directory, JOB)
        self._steps, self._done = task.steps, done
        self._meter, self._losses = Meter(), list[float]()

    def progress(self, progress: JobProgress) -> None:
        self._losses.append(progress.metrics["loss"])
        if progress.step == 1:
            self._done({"losses": list(self._losses)})
        elif (progress.step - 1) % self._steps == 0:
            self._done(self._meter.stop().as_json() | {"losses": self._losses[-self._steps :]})
        else:
            return
        self._meter.start()


DEFAULT = "packed"
"""What a job gets."""


def encode(pairs: Sequence[TokenPair], tokenizer: Any) -> list[PolicyRow]:
    """Pairs as the trainer reads them from a dataset."""
    rows = []
    for number, (prompt, *responses) in enumerate(pairs, start=1):
        pair = PreferencePair(models.text(prompt) + " ", *map(models.text, responses), row=number)
        chosen, rejected = (encode_response(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected))
        rows.append(PolicyRow(pair.pair_id, pair, chosen.prompt_ids, (chosen.response_ids, rejected.response_ids)))
    return rows


def make_loop(
    task: Task,
    rows: Sequence[PolicyRow],
    *,
    variant: str,
    run: Run,
    directory: Path,
    model: Any = None,
    state: TrainingState | None = None,
    store: ObjectStore | None = None,
    **training: Any,
) -> TrainingLoop:
    """The trainer's loop over a task, with nothing but its data and its end made up.

    Args:
        task: Says what is trained on, and how.
        rows: Its pairs.
        variant: See above.
        run: Told of progress.
        directory: Scratch.
        model: In its place; made here where there is none.
        state: Of the checkpoint to go on from.
        store: Of checkpoints; below the directory where there is none.
        training: Other `TrainingParameters`.
    """
    given: dict[str, Any] = {
        "global_batch_size": task.batch,
        "layout": "padded" if variant == "plain" else "packed",
        "micro_batch_tokens": task.row_tokens,
        "precision": task.precision,
        "checkpoint_every_steps": task.total_steps,
        "optimizer": {
            "learning_rate": task.learning_rate,
            "beta1": task.betas[0],
            "beta2": task.betas[1],
            "eps": task.eps,
            "weight_decay": 0.0,
            "warmup_ratio": 0.0,
            "max_grad_norm": task.max_grad_norm,
        },
    }
    parameters = TrainingParameters.model_validate(given | training)
    store, order = store or LocalStore(directory / "store"), TaskOrder(task)
    checkpoints = CheckpointStore(store, run.job.job_id, attempt=1)
    checkpoints.take_ownership()
    ledger = Ledger(store, job_id=run.job.job_id, attempt=1, parts=[])
    model = models.causal_lm(task.model) if model is None else model
    layout = choose_layout(model, parameters, needs_head=True)
    assert layout.name == parameters.layout, layout.reason
    prepare_blocks(model, parameters)
    runner = ModelRunner(model, Layout(VARIANTS[variant]), parameters=parameters, ranks=OneRank())
    policy = PolicyObjective(
        runner,
        rows=rows,
        held_out=[],
        method=get_method("dpo"),
        config=parse_params("dpo", {"beta": task.beta}),
        reference=runner.all_logps([row.group for row in rows]),
        held_out_reference=None,
        mismatched=None,
        margins=None,
        margin_temperature=1.0,
        method_state={},
        ledger=ledger,
        epoch_of=order.epoch,
        seed=task.seed,
    )
    state = TrainingState() if state is None else state
    return TrainingLoop(
        run=run,
        ranks=OneRank(),
        objective=policy,
        micro_batches=runner.micro_batches,
        parameters=parameters,
        schedule=order,
        state=state,
        metrics=[],
        held_out=HeldOutEvaluation(dict, parameters=parameters, state=state, total_steps=order.total_steps),
        checkpoints=checkpoints,
        save_model=Path.mkdir,
        take_record=lambda step: [],
        store_record=lambda: None,
        note_shortage=lambda shortage: None,
    )


def train(task: Task, rows: Sequence[PolicyRow], *, variant: str, done: Callable[[dict[str, Any]], object]) -> None:
    """Run a task from its first step to its last, measured as `MeasuredRun` says."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        run = MeasuredRun(directory, task, done)
        make_loop(task, rows, variant=variant, run=run, directory=directory).execute()


def main() -> None:
    turns = Turns()
    task, variant = Task.parse()
    torch.set_num_threads(task.threads)
    pairs = task.pairs()
    rows = encode(pairs, models.tokenizer(task.model.vocabulary))
    read = [TokenPair(row.prompt_ids, *row.responses) for row in rows]
    facts = {
        "tokens": tokens_digest([[read[row] for row in task.batch_rows(step)] for step in range(task.total_steps)]),
        "matmul_flop_per_cpu_s": matmul_rate(2048, task.model.hidden, task.model.intermediate),
    }

    def done(result: dict[str, Any]) -> None:
        if not turns.done(facts | result):
            sys.exit()

    train(task, rows, variant=variant, done=done)


if __name__ == "__main__":
    main()
