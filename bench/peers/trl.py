"""TRL's DPOTrainer on a task, in turns: python -m bench.peers.trl VARIANT TASK.

trl         as it comes, the reference model run in every step
trl_pre     reference log-probs computed beforehand
trl_sorted  the same, and the pairs of every step ordered by length beforehand
trl_ideal   the same, and what its CUDA kernels do for nothing done here too: only response positions reach the head,
            and the metrics that TRL takes from all logits are not computed
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
import trl.trainer.utils
from transformers import TrainerCallback

from bench import models
from bench.lengths import TokenPair
from bench.meters import Meter, Sample, matmul_rate
from bench.training.task import Task, sort_batches, tokens_digest
from bench.turns import Turns

VARIANTS = ("trl", "trl_pre", "trl_sorted", "trl_ideal")


class TakeTurns(TrainerCallback):
    """Measures from the end of one step to the end of another, and waits for its turn between."""

    def __init__(self, task: Task, turns: Turns, facts: dict[str, Any]) -> None:
        self._task, self._turns, self._facts = task, turns, facts
        self._meter, self._losses = Meter(), list[float]()
        self._sample: Sample | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > 1:
            self._sample = self._meter.stop()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        # The last of all logs sums the run up.
        if "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        if state.global_step == 1:
            self._done(self._facts | {"losses": self._losses})
        elif (state.global_step - 1) % self._task.steps == 0:
            assert self._sample is not None
            self._done(self._sample.as_json() | {"losses": self._losses[-self._task.steps :]})
        else:
            return
        self._meter.start()

    def _done(self, result: dict[str, Any]) -> None:
        if not self._turns.done(result):
            sys.exit()


@contextmanager
def responses_only() -> Iterator[None]:
    """Have TRL's head do on a CPU what it does on CUDA, where only response positions are scored."""
    module: Any = trl.trainer.utils
    original = module._use_triton, module._ChunkedLogProbFunction

    class WithoutMetrics:
        @staticmethod
        def apply(*arguments: Any) -> tuple[Any, ...]:
            logps = original[1].apply(*arguments[:-1], ("log_probs",))[0]
            nothing = torch.zeros_like(logps)
            return logps, nothing, None, nothing, nothing.bool()

    module._use_triton, module._ChunkedLogProbFunction = lambda device: True, WithoutMetrics
    try:
        yield
    finally:
        module._use_triton, module._ChunkedLogProbFunction = original


def make_dataset(pairs: Sequence[TokenPair]) -> datasets.Dataset:
    """Texts; TRL makes the tokens itself."""
    return datasets.Dataset.from_dict(
        {
            "prompt": [models.text(pair.prompt) + " " for pair in pairs],
            "chosen": [models.text(pair.chosen) for pair in pairs],
            "rejected": [models.text(pair.rejected) for pair in pairs],
        }
    )


def make_trainer(
    task: Task, variant: str, *, directory: Path, callback: TrainerCallback | None = None, use_cpu: bool = True
) -> Any:
    """The trainer with the task's settings."""
    pairs = task.pairs()
    if variant in ("trl_sorted", "trl_ideal"):
        pairs = sort_batches(pairs, task.batch)
    arguments = trl.DPOConfig(
        output_dir=str(directory),
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.batch // task.micro_batch,
        max_steps=task.total_steps,
        train_sampling_strategy="sequential",
        learning_rate=task.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        adam_beta1=task.betas[0],
        adam_beta2=task.betas[1],
        adam_epsilon=task.eps,
        weight_decay=0.0,
        max_grad_norm=task.max_grad_norm,
        beta=task.beta,
        max_length=None,
        precompute_ref_log_probs=variant != "trl",
        precompute_ref_batch_size=task.micro_batch,
        use_cpu=use_cpu,
        bf16=task.precision == "bf16",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    reference = {} if arguments.precompute_ref_log_probs else {"ref_model": models.causal_lm(task.model)}
    return trl.DPOTrainer(
        model=models.causal_lm(task.model),
        args=arguments,
        train_dataset=make_dataset(pairs),
        processing_class=models.tokenizer(task.model.vocabulary),
        callbacks=[callback] if callback else [],
        **reference,
    )


def rows_of_steps(task: Task, trainer: Any) -> list[list[TokenPair]]:
    """The tokens TRL made, step by step."""
    rows = [TokenPair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    return [[rows[row] for row in task.batch_rows(step)] for step in range(task.total_steps)]


def main() -> None:
    turns = Turns()
    task, variant = Task.parse()
    assert variant in VARIANTS, variant
    torch.set_num_threads(task.threads)
    datasets.disable_progress_bars()
    facts: dict[str, Any] = {"matmul_flop_per_cpu_s": matmul_rate(2048, task.model.hidden, task.model.intermediate)}
    head = responses_only() if variant == "trl_ideal" else nullcontext()
    with head, tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(task, variant, directory=Path(scratch), callback=TakeTurns(task, turns, facts))
        facts["tokens"] = tokens_digest(rows_of_steps(task, trainer))
        trainer.train()


if __name__ == "__main__":
    main()
