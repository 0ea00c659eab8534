"""What every training job is asked."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from madpo.jobs.base import DatasetReference, MostTokens, Spec
from madpo.types import MOST_STEPS, AtMost

Overlong = Literal["error", "drop", "truncate_prompt", "truncate_response"]
"""Rows over `max_tokens`: refuse the training; leave the row out; cut the beginning of its prompt; cut the end of its
responses."""


ALL_LINEAR = "all-linear"
"""In the place of names of layers: every linear one but the head; peft's word."""
_MAX_PATTERN_CHARS = 10_000
_IN_PATTERNS = re.compile(r"[*+?()\[\]{}|^$\\]")
"""What no layer's name has, but patterns of names."""


def is_pattern(name: str) -> bool:
    """Whether a name of `target_modules` is a regular expression of names of layers."""
    return _IN_PATTERNS.search(name) is not None


class OptimizerParameters(Spec):
    """AdamW with linear warm-up, then a schedule."""

    learning_rate: Annotated[float, AtMost(1)] = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on behind the warm-up: falling by half a cosine, by a line, or staying at the peak."""
    warmup_ratio: float | None = Field(default=0.03, ge=0, lt=1)
    """Share of all steps spent warming up, rounded to whole steps; 0 begins at the peak."""
    warmup_steps: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=0)
    """Steps spent warming up, instead of `warmup_ratio`. The first has 1 / (`warmup_steps` + 1) of the peak."""
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak that a falling schedule ends at."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running mean of gradients."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: Annotated[float, AtMost(1)] = Field(default=1e-8, gt=0)
    """Added to the denominator of an update."""
    weight_decay: Annotated[float, AtMost(100)] = Field(default=0.01, ge=0)
    """Share of a weight, times the learning rate, that each step takes away. Matrices decay, embeddings among them;
    norms, biases and other vectors do not."""
    max_grad_norm: Annotated[float, AtMost(1_000_000_000)] = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` remembers a quarter as much: two bytes a weight in the place of eight (arXiv:2110.02861), embeddings
    apart, small tensors, and weights whose rows are no multiple of 256 numbers. Needs bitsandbytes where the trainer
    runs (the extra `gpu`)."""
    offload: bool = False
    """Keep what AdamW remembers in the host's memory; a piece at a time comes to the GPU for a step. The same bits, and
    slower by the way of sixteen bytes a weight."""

    @model_validator(mode="after")
    def _one_way_to_remember(self) -> Self:
        if self.offload and self.name != "adamw":
            raise ValueError(f"offload goes with adamw, not with {self.name}: leave one of the two out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        steps, ratio = value.get("warmup_steps"), value.get("warmup_ratio")
        if steps is not None and ratio is not None:
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        rest = {name: given for name, given in value.items() if name != "warmup_ratio"}
        if steps is not None:
            return rest | {"warmup_ratio": None}
        return rest if ratio is None else rest | {"warmup_ratio": ratio}


class LoraParameters(Spec):
    """Low-rank adapters; the reference policy is the adapter switched off."""

    rank: Annotated[int, AtMost(16_384)] = Field(default=16, ge=1)
    """Rank of the two factors of an adapter."""
    alpha: Annotated[float, AtMost(1_000_000)] = Field(default=32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs left out at each training step."""
    target_modules: Annotated[tuple[str, ...], AtMost(10_000)] = Field(default=(ALL_LINEAR,), min_length=1)
    """Names of the layers that get an adapter, each the end of at least one layer's name, such as q_proj, or a regular
    expression of whole names; `all-linear` takes every linear layer but the head; of a mixture of experts neither the
    router nor the experts, nor layers that peft takes for experts by their name; of a state-space mixer (Mamba) the
    first. The result counts them by name."""
    exclude_modules: Annotated[tuple[str, ...], AtMost(10_000)] = ()
    """Names of layers that get none, of those that `target_modules` takes."""
    use_rslora: bool = False
    """Scale adapters by alpha / sqrt(rank), which keeps large ranks learning (arXiv:2312.03732)."""
    quantize_base: Literal["nf4"] | None = None
    """Train on a base whose linear layers in the blocks are in four bits (QLoRA, arXiv:2305.14314): between a third
    and a quarter of the memory of their weights in bf16. The adapter is a plain one, and goes on the base as it is
    stored. Needs bitsandbytes where the trainer runs (the extra `gpu`)."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("target_modules")
    @classmethod
    def _all_or_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if ALL_LINEAR in value and len(value) > 1:
            raise ValueError(f"give {ALL_LINEAR} alone, or names of layers")
        return value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _patterns_can_be_read(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        patterns = [name for name in value if is_pattern(name)]
        if sum(map(len, patterns)) > _MAX_PATTERN_CHARS:
            raise ValueError(f"regular expressions have at most {_MAX_PATTERN_CHARS} characters together")
        for name in patterns:
            try:
                re.compile(name)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{name} is no regular expression: {error}") from error
        return value


class TrainingParameters(Spec):
    """What every training job needs."""

    epochs: Annotated[float, AtMost(10_000)] = Field(default=1.0, gt=0)
    """Passes over the data; ignored when `max_steps` is given."""
    max_steps: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=1)
    """Optimizer steps, instead of `epochs`."""
    global_batch_size: Annotated[int, AtMost(1_000_000)] = Field(default=32, ge=1)
    """Rows per optimizer step."""
    layout: Literal["packed", "padded"] = "packed"
    """`packed` runs prompts once for all their responses, without padding, where the model can; `padded` runs every
    response behind its own prompt, in padded batches. The result is the same up to rounding."""
    micro_batch_tokens: MostTokens = Field(default=4096, ge=1)
    """Tokens per forward pass; longer rows go alone. A memory setting that does not change the result beyond rounding;
    halved when memory runs out, and again, down to single rows."""
    max_tokens: MostTokens = Field(default=1024, ge=2)
    """Longest prompt plus response, in tokens. No more than the model can read; that is also the default where it is
    less."""
    overlong: Overlong = "error"
    """What becomes of longer rows: refuse the training and name them; leave them out; cut the beginning of the prompt;
    cut the end of the responses. Rows left out or cut are counted in the job's summary. A row of which no token of a
    response would be left is left out."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Where chance starts: the order of the rows, dropout and new weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What is computed in; the weights that are trained and the optimizer stay fp32. `auto`: bf16 on a GPU that has it,
    fp32 elsewhere; the result says which. bf16 runs the forward pass under autocast, and gathers the weights of a
    sharded model in bf16. fp32 on a GPU is TF32."""
    deterministic: bool = False
    """On a GPU, give the same bits each time, also after a resume: attention's backward pass in its slower form, and an
    operation that has no such form ends the job. On a CPU it is so anyway; the result says whether it was."""
    save_dtype: Literal["base", "fp32", "bf16"] = "base"
    """Of the weights of the model that is left: as the model it started from has them, tensor by tensor, or all alike.
    What is measured at the end is the model as it is left. `base` leaves adapters in fp32; checkpoints always are."""
    optimizer: OptimizerParameters = OptimizerParameters()
    """Learning rate and its schedule, decay and clipping."""
    lora: LoraParameters | None = None
    """Train low-rank adapters; null trains all weights."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` splits weights, gradients and optimizer state of the blocks, embeddings and head over the trainer's ranks
    (FSDP2)."""
    activation_checkpointing: bool | None = None
    """Keep only the inputs of transformer blocks for the backward pass, which computes the rest again: less memory,
    about a third more compute, the same result. null does it where a step would else not fit, by an estimate before
    the first; the result says which, and why (`execution`)."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile); needs a C++ compiler where the trainer runs. Rounding differs."""
    eval_every_steps: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=1)
    """Steps between evaluations on the held-out rows; null has them before the first step and after the last alone."""
    best_metric: str = "loss"
    """Figure on the held-out rows by which a step is the best: `loss`, `accuracy` of a reward model, `rewards/accuracy`
    of a policy and others, which the refusal of a wrong name lists. The step's checkpoint is kept. Of losses and errors
    less is better, of all others more."""
    early_stopping_patience: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=1)
    """Stop after so many evaluations in a row without a new best; null never does."""
    publish: Literal["last", "best"] | None = None
    """Which step's weights are the job's model; null: the best with `early_stopping_patience`, else the last."""
    checkpoint_every_steps: Annotated[int, AtMost(MOST_STEPS)] = Field(default=100, ge=1)
    """Steps between checkpoints; the last step has one anyway."""
    keep_checkpoints: Annotated[int, AtMost(10_000)] = Field(default=2, ge=1)
    """Newest checkpoints kept; besides that of the best step, and those that other jobs name."""
    log_every_steps: Annotated[int, AtMost(MOST_STEPS)] = Field(default=1, ge=1)
    """Steps between reports of progress, and between rows of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _evaluates(self) -> Self:
        if self.eval_every_steps is None and self.publishes_best:
            asked = "early_stopping_patience" if self.publish is None else "publish: best"
            raise ValueError(f"{asked} needs eval_every_steps: without it no step is known to be the best")
        return self

    @property
    def publishes_best(self) -> bool:
        """Whether the job's model is that of the best step."""
        if self.publish is None:
            return self.early_stopping_patience is not None
        return self.publish == "best"


class EvaluatedTraining(Spec):
    """Base of the specs of trainings: what they say of `training` and of `eval_dataset` must go together."""

    if TYPE_CHECKING:  # each has them in its own order
        training: TrainingParameters
        eval_dataset: DatasetReference | None

    @model_validator(mode="after")
    def _has_held_out_rows(self) -> Self:
        if self.training.eval_every_steps is not None and self.eval_dataset is None:
            raise ValueError("training.eval_every_steps needs eval_dataset: the held-out rows to evaluate on")
        return self
