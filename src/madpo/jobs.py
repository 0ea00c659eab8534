"""Typed job specs: what a job is asked to do, with every default and range in one place.

The same names stand in `job_service.proto`; a test keeps the two equal. Unknown fields are refused.
"""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.losses.scales import MarginTemperature
from madpo.types import JobKind

MODEL_ID_PATTERN = r"^model-[0-9a-f]{32}$"
DATASET_ID_PATTERN = r"^dataset-[0-9a-f]{32}$"
JOB_ID_PATTERN = r"^job-[0-9a-f]{32}$"

T = TypeVar("T")

Overlong = Literal["error", "drop", "truncate_prompt", "truncate_response"]
"""Rows over `max_tokens`: refuse the training; leave the row out; cut the beginning of its prompt; cut the end of its
responses."""

ModelId = Annotated[str, Field(pattern=MODEL_ID_PATTERN)]
DatasetId = Annotated[str, Field(pattern=DATASET_ID_PATTERN)]
JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]


class Spec(BaseModel):
    """Base of all specs: immutable, unknown fields refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelReference(Spec):
    """A model by its id, or as the output of a job."""

    model_id: ModelId | None = None
    job_id: JobId | None = None
    step: int | None = Field(default=None, ge=0)
    """With `job_id`: that checkpoint instead of the final model."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model_id is None) == (self.job_id is None):
            raise ValueError("give exactly one of model_id and job_id")
        if self.step is not None and self.job_id is None:
            raise ValueError("step needs job_id")
        return self


class OptimizerParameters(Spec):
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps spent warming up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""


class LoraParameters(Spec):
    """Low-rank adapters; the reference policy is the adapter switched off."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainingParameters(Spec):
    """What every training job needs."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data; ignored when `max_steps` is given."""
    max_steps: int | None = Field(default=None, ge=1)
    global_batch_size: int = Field(default=32, ge=1)
    """Rows per optimizer step."""
    layout: Literal["packed", "padded"] = "packed"
    """`packed` runs prompts once for all their responses, without padding, where the model can; `padded` runs every
    response behind its own prompt, in padded batches. The result is the same up to rounding."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward pass; longer rows go alone. A memory setting that does not change the result beyond rounding;
    halved once when memory runs out."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest prompt plus response."""
    overlong: Overlong = "error"
    """What becomes of longer rows. They are refused by their numbers before training; or counted in the job's summary.
    At least one token of every response is left, or the row is dropped."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Weights and optimizer stay fp32; bf16 runs the forward pass under autocast."""
    optimizer: OptimizerParameters = OptimizerParameters()
    lora: LoraParameters | None = None
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` splits the transformer blocks' weights, gradients and optimizer state over the trainer's ranks (FSDP2)."""
    activation_checkpointing: bool = False
    """Keep only the inputs of transformer blocks for the backward pass, which computes the rest again: less memory,
    about a third more compute, the same result."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile); needs a C++ compiler where the trainer runs. Rounding differs."""
    checkpoint_every_steps: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    log_every_steps: int = Field(default=1, ge=1)


class PreferenceMethod(Spec):
    """A method of the registry with its parameters."""

    name: str = "madpo"
    params: dict[str, Any] = Field(default_factory=dict)


class MarginParameters(Spec):
    """Where reward margins come from."""

    source: Literal["reward_service", "dataset"] = "reward_service"
    reward_model: ModelReference | None = None
    """Needed by `reward_service`."""
    temperature: MarginTemperature = 1.0
    """Divides margins before the method reads them, so that sigmoid(margin) is a probability; "fit" finds it on the
    held-out pairs, before the first step."""
    outage_policy: Literal["pause", "neutral", "fail"] = "pause"
    """While no scorer answers: wait, train with weight 1, or fail."""
    outage_budget_s: float = Field(default=900.0, gt=0)
    """Longest outage `pause` waits out, in seconds."""
    lookahead_batches: int = Field(default=32, ge=1, le=1024)
    """Most batches whose margins are asked for ahead of the step; how many it are follows from the scorer's latency."""

    @model_validator(mode="after")
    def _service_needs_a_model(self) -> Self:
        if self.source == "reward_service" and self.reward_model is None:
            raise ValueError("reward_service needs reward_model (or use source=dataset with a margin column)")
        return self


class SamplingParameters(Spec):
    """How responses are drawn."""

    temperatures: tuple[float, ...] = (1.0,)
    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    max_new_tokens: int = Field(default=128, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _positive_temperatures(self) -> Self:
        if not self.temperatures or min(self.temperatures) <= 0 or max(self.temperatures) > 10:
            raise ValueError("temperatures must be in (0, 10], and at least one")
        return self


class _TrainingSpec(Spec):
    model: ModelReference
    dataset_id: DatasetId
    eval_dataset_id: DatasetId | None = None
    """Held-out rows, measured before the first and after the last step."""
    training: TrainingParameters = TrainingParameters()


class SupervisedTrainingSpec(_TrainingSpec):
    """Fine-tune a causal language model on completions."""


class RewardTrainingSpec(_TrainingSpec):
    """Train a Bradley-Terry reward model on preference pairs."""


class PolicyTrainingSpec(_TrainingSpec):
    """Train a policy on preference pairs or lists of scored responses.

    The reference is the initial policy, unless the method moves it.
    """

    method: PreferenceMethod = PreferenceMethod()
    margin: MarginParameters | None = None


class EvaluationSpec(Spec):
    """Generate from a policy and measure what it says."""

    model: ModelReference
    prompt_dataset_id: DatasetId
    reference: ModelReference | None = None
    """What KL is measured to."""
    reward_model: ModelReference | None = None
    preference_dataset_id: DatasetId | None = None
    """Held-out pairs for the accuracy of the implicit reward; needs `reference`."""
    baseline_job_ids: tuple[JobId, ...] = ()
    """Evaluation jobs over the same prompts and sampling to compare with."""
    metrics: tuple[str, ...] = ()
    """Names of registered text metrics (entry points `madpo.metrics`)."""
    sampling: SamplingParameters = SamplingParameters()
    max_prompts: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _pairs_need_a_reference(self) -> Self:
        if self.preference_dataset_id is not None and self.reference is None:
            raise ValueError("preference_dataset_id needs reference: implicit rewards are measured against it")
        return self


class CalibrationSpec(Spec):
    """Measure the scale of a reward model's margins, and what a method would make of them, before any training."""

    dataset_id: DatasetId
    """Held-out pairs: such as the reward model was not trained on."""
    reward_model: ModelReference | None = None
    """Whose margins; None takes those the datasets brought along."""
    temperature: MarginTemperature = 1.0
    """As in `MarginParameters`."""
    method: PreferenceMethod = PreferenceMethod()
    """What reads the margins."""
    training_dataset_id: DatasetId | None = None
    """The pairs to be trained on, for quantiles and weights; None takes the held-out ones."""


class DatasetCheckSpec(Spec):
    """Look at a dataset through a model's tokenizer and chat template, and keep the tokens for trainings."""

    dataset_id: DatasetId
    model: ModelReference
    held_out_dataset_id: DatasetId | None = None
    """Rows whose prompts should not be among the checked ones."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest prompt plus response."""
    overlong: Overlong = "error"
    """What a training would do with longer rows; the report says what each policy would leave."""


JobSpec = (
    SupervisedTrainingSpec
    | RewardTrainingSpec
    | PolicyTrainingSpec
    | EvaluationSpec
    | CalibrationSpec
    | DatasetCheckSpec
)

SPEC_TYPES: dict[JobKind, type[JobSpec]] = {
    JobKind.SUPERVISED_TRAINING: SupervisedTrainingSpec,
    JobKind.REWARD_TRAINING: RewardTrainingSpec,
    JobKind.POLICY_TRAINING: PolicyTrainingSpec,
    JobKind.EVALUATION: EvaluationSpec,
    JobKind.CALIBRATION: CalibrationSpec,
    JobKind.DATASET_CHECK: DatasetCheckSpec,
}

QUEUE_NAMES: dict[JobKind, str] = {
    JobKind.SUPERVISED_TRAINING: "train",
    JobKind.REWARD_TRAINING: "train",
    JobKind.POLICY_TRAINING: "train",
    JobKind.EVALUATION: "evaluate",
    JobKind.CALIBRATION: "evaluate",
    JobKind.DATASET_CHECK: "evaluate",
}


def parse_spec(kind: JobKind, value: Any, *, path: str = "spec") -> JobSpec:
    """Check the JSON form of a spec.

    Args:
        kind: Which spec it is.
        value: The JSON object.
        path: Prefix of the field names in violations.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    return validate(SPEC_TYPES[kind], value, path=f"{path}.{kind.value}")


def validate(schema: type[T], value: Any, *, path: str) -> T:
    """Check a value against a pydantic schema; wrong fields become violations under `path`.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        violations = [
            FieldViolation(".".join([path, *map(str, detail["loc"])]), _describe(detail["msg"], detail["input"]))
            for detail in error.errors(include_url=False)
        ]
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise InvalidArgumentError(message, violations) from error


def _describe(message: str, value: Any) -> str:
    text = message.removeprefix("Value error, ")
    return text if isinstance(value, dict) else f"{text}, got {value!r:.80}"


def referenced_job_ids(spec: JobSpec) -> tuple[str, ...]:
    """Jobs whose outputs the spec uses; they must succeed first."""
    references: list[ModelReference | None] = [spec.reward_model if isinstance(spec, CalibrationSpec) else spec.model]
    extra: tuple[str, ...] = ()
    if isinstance(spec, PolicyTrainingSpec) and spec.margin is not None:
        references.append(spec.margin.reward_model)
    if isinstance(spec, EvaluationSpec):
        references += [spec.reference, spec.reward_model]
        extra = spec.baseline_job_ids
    # A named checkpoint exists already: it does not wait for its job to end.
    ids = [reference.job_id for reference in references if reference and reference.job_id and reference.step is None]
    return tuple(dict.fromkeys([*ids, *extra]))
