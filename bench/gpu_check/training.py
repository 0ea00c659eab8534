"""Training steps as the trainer takes them: speed, memory, shortage of it, resuming, and TRL on the same pairs."""

import gc
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaForCausalLM

from bench import models
from bench.gpu_check.check import Check, Figures, Setting, Skipped, forget_peak, peak_gib, require, synchronize
from bench.gpu_check.kernels import matmul_rate
from bench.training.ours import JOB, encode, make_loop
from bench.training.task import Task
from madpo.types import JobProgress
from madpo.worker.workspace import Run
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.loop import TrainingLoop
from madpo_trainer.state import load_state, make_deterministic, save_state

_WARM_UP = 2
"""Steps that are not timed."""


def make_model(setting: Setting, *, lora: bool = False) -> Any:
    """A random model with tied embeddings, on the device."""
    torch.manual_seed(0)
    config = models.config(setting.size)
    config.tie_word_embeddings = True
    with setting.device:
        model = LlamaForCausalLM(config)
    if lora:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type=TaskType.CAUSAL_LM))
    return model


class TimedRun(Run):
    """Knows when each step ended, and its loss."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        super().__init__(directory, JOB)
        self._device = device
        self.ends: list[float] = []
        self.losses: list[float] = []

    def progress(self, progress: JobProgress) -> None:
        synchronize(self._device)
        self.ends.append(time.perf_counter())
        self.losses.append(progress.metrics["loss"])

    @property
    def step_s(self) -> float:
        """Seconds of a step, without the first ones."""
        seconds = sorted(b - a for a, b in itertools.pairwise(self.ends[_WARM_UP - 1 :]))
        return seconds[len(seconds) // 2]


def task_of(setting: Setting, *, steps: int | None = None, precision: str = "bf16") -> Task:
    """Pairs of the setting's shape."""
    return Task(
        size=setting.size,
        batch=setting.batch,
        micro_batch=max(2, setting.batch // 4),
        steps=1 if steps is None else steps,
        rounds=_WARM_UP + setting.steps if steps is None else 1,
        shape=setting.shape,
        precision=precision,
    )


def rows_of(task: Task) -> list[PolicyRow]:
    """Its pairs as the trainer reads them."""
    return encode(task.pairs(), models.tokenizer(task.model.vocabulary))


def train(setting: Setting) -> Figures:
    """Full and adapters, with and without recomputing activations."""
    peak = matmul_rate(setting, torch.bfloat16)
    task = task_of(setting)
    rows = rows_of(task)
    figures: dict[str, Any] = {}
    for lora, recompute in itertools.product((False, True), (False, True)):
        forget_peak(setting.device)
        name = f"{'lora' if lora else 'full'}{', checkpointing' if recompute else ''}"
        with tempfile.TemporaryDirectory() as scratch:
            run = TimedRun(Path(scratch), setting.device)
            model = make_model(setting, lora=lora)
            loop = make_loop(
                task,
                rows,
                variant="packed",
                run=run,
                directory=Path(scratch),
                model=model,
                activation_checkpointing=recompute,
            )
            loop.estimate_memory()
            estimate = loop.summary()["memory_estimate"]
            before = torch.cuda.memory_allocated(setting.device) if setting.is_cuda else 0
            forget_peak(setting.device)
            loop.execute()
        tokens = sum(len(row.prompt_ids) + sum(map(len, row.responses)) for row in rows)
        weights = sum(parameter.numel() for parameter in model.parameters())
        seconds = run.step_s
        found: dict[str, Any] = {
            "step_s": round(seconds, 4),
            "tokens_per_s": round(tokens / seconds),
            # Backward passes by weights that are frozen cost half of those by weights that are trained.
            "flop_share": round((4 if lora else 6) * weights * tokens / seconds / peak, 3),
            "losses": [round(loss, 5) for loss in run.losses[-2:]],
            "estimate_gib": round((estimate["training_state_mib"] + estimate["activations_mib"]) / 1024, 3),
        }
        figures[name] = found
        require(all(loss == loss and abs(loss) < 1e6 for loss in run.losses), f"{name}: a loss is no number", figures)
        if setting.is_cuda:
            took = (peak_gib(setting.device) or 0.0) - before / 2**30
            found |= {"peak_gib": peak_gib(setting.device), "took_gib": round(took, 3)}
            # The moments are there when the estimate is made.
            expected = found["estimate_gib"] - (0 if lora else 2 * 4 * weights / 2**30)
            found["estimate_over_took"] = round(expected / took, 3)
        del loop, model
        gc.collect()
    if setting.is_cuda:
        off = {
            name: each["estimate_over_took"]
            for name, each in figures.items()
            if not 0.7 <= each["estimate_over_took"] <= 1.3
        }
        require(not off, f"the estimate of memory is off by more than 30 % ({off})", figures)
    return figures


def shortage(setting: Setting) -> Figures:
    """A micro-batch that does not fit is done again in pieces, to the same loss."""
    task = task_of(setting, steps=3, precision="fp32")
    rows = rows_of(task)
    roomy = _losses(setting, task, rows)
    real = torch.autograd.backward
    failures = 0

    def short(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            if setting.is_cuda:  # the allocator's own refusal
                torch.empty(1 << 46, dtype=torch.uint8, device=setting.device)
            raise torch.OutOfMemoryError("out of memory")
        real(loss, *arguments, **options)

    torch.autograd.backward = short  # type: ignore[assignment]
    try:
        found = _losses(setting, task, rows)
    finally:
        torch.autograd.backward = real
    figures = {"roomy": roomy, "short": found, "times": failures}
    require(
        all(abs(a - b) <= 1e-3 for a, b in zip(roomy, found, strict=True)), "another loss after a shortage", figures
    )
    return figures


def _losses(setting: Setting, task: Task, rows: list[PolicyRow]) -> list[float]:
    with tempfile.TemporaryDirectory() as scratch:
        run = TimedRun(Path(scratch), setting.device)
        make_loop(
            task, rows, variant="packed", run=run, directory=Path(scratch), model=make_model(setting), log_every_steps=1
        ).execute()
        return [round(loss, 6) for loss in run.losses]


def resume(setting: Setting) -> Figures:
    """Six steps at once, and three and three with a checkpoint between: the same bits."""
    figures = {}
    for precision in ("fp32", "bf16"):
        task = replace(task_of(setting, steps=5, precision=precision), size=replace(setting.size, layers=2))
        rows = rows_of(task)
        whole = _weights(setting, task, rows, split=False)
        split = _weights(setting, task, rows, split=True)
        different = [name for name, tensor in whole.items() if not torch.equal(tensor, split[name])]
        figures[precision] = {"tensors": len(whole), "different": len(different)}
    require(not any(each["different"] for each in figures.values()), "a resumed run has other bits", figures)
    return figures


def _weights(setting: Setting, task: Task, rows: list[PolicyRow], *, split: bool) -> dict[str, torch.Tensor]:
    make_deterministic(None, strict=setting.is_cuda)
    small = replace(setting, size=task.model)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved"

        def loop(name: str, **options: Any) -> tuple[Any, TrainingLoop]:
            """Reference log-probs are made of the weights that a model begins with."""
            directory, model = Path(scratch) / name, make_model(small)
            directory.mkdir()
            run = TimedRun(directory, setting.device)
            made = make_loop(task, rows, variant="packed", run=run, directory=directory, model=model, **options)
            return model, made

        model, first = loop("first", checkpoint_every_steps=3)
        if split:
            _keep_checkpoint(first, saved)
        first.execute()
        if split:
            state, _, _ = load_state(saved)
            model, second = loop("second", state=state)
            model.load_state_dict(torch.load(saved / "weights.pt"))
            second.restore(saved)
            second.execute()
        return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _keep_checkpoint(loop: TrainingLoop, directory: Path) -> None:
    """Have the loop leave its first checkpoint here, and stop."""
    uploads = loop._uploads
    begin: Callable[..., None] = uploads.begin

    def keep(step: int, written: Path, **options: Any) -> None:
        if not directory.exists():
            shutil.copytree(written, directory)
            torch.save(loop._objective.model.state_dict(), directory / "weights.pt")
            save_state(directory, state=loop.state, metrics=loop.metrics)
        begin(step, written, **options)

    uploads.begin = keep  # type: ignore[method-assign]


def trl(setting: Setting) -> Figures:
    """TRL's DPOTrainer on the same pairs, in bf16, with reference log-probs made beforehand."""
    try:
        from bench.peers.trl import make_trainer
    except ImportError as error:
        raise Skipped(f"trl cannot be imported: {error}") from error
    task = task_of(setting)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(task, "trl_pre", directory=Path(scratch), use_cpu=not setting.is_cuda)
        forget_peak(setting.device)
        times: list[float] = []
        trainer.add_callback(_step_times(times, setting.device))
        trainer.train()
    seconds = sorted(b - a for a, b in itertools.pairwise(times[_WARM_UP - 1 :]))
    return {"step_s": round(seconds[len(seconds) // 2], 4), "peak_gib": peak_gib(setting.device)}


def _step_times(times: list[float], device: torch.device) -> Any:
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(device)
            times.append(time.perf_counter())

    return Times()


CHECKS = (
    Check("train", train, 240),
    Check("trl", trl, 180),
    Check("shortage", shortage, 120),
    Check("resume", resume, 120),
)
