"""Training state as files: safetensors and JSON, never pickle.

A checkpoint directory:

    model/                     a Hugging Face directory (an adapter when training LoRA), with tokenizer
    optimizer.safetensors      `{parameter}/{exp_avg|exp_avg_sq|step}`; 5 GB a file
    method.safetensors         the method's running statistics, where it has any
    reference.safetensors      the weights of a reference that moves
    state.json                 step, seed, pinned revisions, ledger parts
    metrics.jsonl              logged steps so far

There is no RNG state: every micro-batch seeds torch from (seed, step, its number), so the step number restores it.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from madpo.errors import UnknownFormatError
from madpo.jobs.training import TrainingParameters
from madpo.models.device import use_tensor_cores
from madpo.storage.documents import known_fields

FORMAT = 2
"""Of `state.json`; see `madpo.storage.documents`. 1 where tensors beside the model are one file of each name."""
_STATE = "state.json"


@dataclass(slots=True)
class TrainingState:
    """Everything but tensors that a resumed run needs."""

    step: int = 0
    """Optimizer steps done."""
    seed: int = 0
    precision: Literal["fp32", "bf16"] | None = None
    """What the job computes in, once decided: also on another device."""
    reward_revision: str | None = None
    """Revision of the reward model whose margins this job uses."""
    ledger_parts: list[str] = field(default_factory=list)
    initial_eval: dict[str, float] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    """The `CalibrationReport` of the job's first attempt, whose numbers hold for all; empty where there was none."""
    memory_shortage: dict[str, int] = field(default_factory=dict)
    """`step`, from 1, in which memory ran out, and the tokens of a micro-batch `before` and `after`; once a job."""
    evaluated_step: int = 0
    """The newest step whose weights were looked at on the held-out rows."""
    last_eval: dict[str, float] = field(default_factory=dict)
    """What they showed."""
    best: dict[str, Any] = field(default_factory=dict)
    """The `step` that was best on the held-out rows by a `metric`, its `value`, and all figures (`eval`)."""
    evaluations_since_best: int = 0
    stopped_early: bool = False
    initial_weights: dict[str, int] = field(default_factory=dict)
    """Fingerprints of the trained parameters before the first step."""
    largest: dict[str, float] = field(default_factory=dict)
    """The largest absolute value of every figure of a step, over all steps."""
    counters: dict[str, float] = field(default_factory=dict)
    """Sums over all attempts: seconds trained, seconds waited for margins..."""


def make_deterministic(threads: int | None, *, strict: bool = False) -> None:
    """Bit-equal results on the same machine: what a resumed run is compared by.

    Args:
        threads: Of the CPU; None for torch's own choice.
        strict: Also of the backward pass of attention on a GPU, which is slower then; what has no such form is refused
            where it is met. Without, a GPU rounds sums now one way and now the other; a CPU never does.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    use_tensor_cores()
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # Fresh memory is written before it is read; filling it first would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def settle_determinism(threads: int | None, device: torch.device, parameters: TrainingParameters) -> bool:
    """Compute as a job asks; whether its bits are the same each time, as they are on a CPU anyway."""
    asked = parameters.deterministic
    make_deterministic(threads, strict=asked and device.type == "cuda")
    return asked or device.type != "cuda"


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Make all randomness of a micro-batch (dropout) a function of its place, whichever rank it is dealt to.

    Args:
        seed: Of the job.
        step: The step.
        number: Of the micro-batch among those of the step's global batch.
    """
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + number) % 2**63)


def save_state(
    directory: Path,
    *,
    state: TrainingState,
    metrics: list[dict[str, Any]],
) -> None:
    """Write what is no tensor, beside the tensors."""
    body = {**asdict(state), "format": FORMAT if any(directory.glob("*-of-*.safetensors")) else 1}
    (directory / _STATE).write_text(json.dumps(body, indent=1, sort_keys=True))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))


def load_state(directory: Path) -> tuple[TrainingState, dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """State, the objective's tensors by file, and logged metrics of a checkpoint.

    Raises:
        UnknownFormatError: A newer version wrote it.
    """
    body = json.loads((directory / _STATE).read_text())
    if body.get("format", FORMAT) > FORMAT:
        raise UnknownFormatError(
            f"the checkpoint's {_STATE} has format {body['format']}, this version reads up to {FORMAT}: upgrade madpo"
        )
    state = TrainingState(**known_fields(TrainingState, body))
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in ("method", "reference"):
        for path in sorted(directory.glob(f"{name}*.safetensors")):
            tensors.setdefault(name, {}).update(load_file(path))
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return state, tensors, metrics
