"""What OpenAI's clients ask of a fine-tuning job, and the spec of ours that it is."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from madpo.errors import InvalidArgumentError
from madpo.jobs.training import OptimizerParameters
from madpo.types import JobKind

Auto = Literal["auto"]

_DEFAULT_RATE: float = OptimizerParameters().learning_rate
_METHOD = "dpo"


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Hyperparameters(_Asked):
    """As OpenAI names them; `auto` is our default."""

    n_epochs: float | Auto = "auto"
    """Passes over the data."""
    batch_size: int | Auto = "auto"
    """Rows of a step."""
    learning_rate_multiplier: float | Auto = "auto"
    """Times our default learning rate."""
    beta: float | Auto = "auto"
    """Of DPO."""


class _Configured(_Asked):
    hyperparameters: Hyperparameters = Hyperparameters()


class Method(_Asked):
    """How to train."""

    type: Literal["supervised", "dpo"]
    """`reinforcement` is not offered: a reward model's margins weigh `dpo` here, by `madpo`."""
    supervised: _Configured | None = None
    dpo: _Configured | None = None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those of the method that is meant."""
        configured = self.dpo if self.type == "dpo" else self.supervised
        return configured.hyperparameters if configured is not None else Hyperparameters()


class Extension(_Asked):
    """What OpenAI's API has no words for; every field as of our own specs (docs/jobs.md)."""

    method: str | None = None
    """Any method of `madpo methods`, such as `madpo`; by default `dpo`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters; `beta` may stand among the hyperparameters instead."""
    reward_model: str | None = None
    """For methods that read margins: the id of a reward model, or of the job that trains it."""
    margin: dict[str, Any] = Field(default_factory=dict)
    """Where margins come from, else."""
    training: dict[str, Any] = Field(default_factory=dict)
    """What the hyperparameters have no names for: `lora`, `max_tokens`, `overlong` and so on."""


class CreateFineTuningJob(_Asked):
    """`POST /v1/fine_tuning/jobs`."""

    model: str
    """A stored model, or a job that has left one: an id, its beginning or a name."""
    training_file: str
    """A file, which is a dataset."""
    validation_file: str | None = None
    """Held-out rows, measured before and after."""
    suffix: str | None = Field(default=None, max_length=64)
    """A name for the job and its model."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    method: Method | None = None
    """By default `supervised`, as OpenAI has it."""
    hyperparameters: Hyperparameters | None = None
    """The old place of those of `supervised`."""
    integrations: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None
    madpo: Extension = Extension()
    """Given as `extra_body={"madpo": {...}}`."""

    @model_validator(mode="after")
    def _is_offered(self) -> "CreateFineTuningJob":
        for integration in self.integrations or ():
            raise ValueError(f"the integration {integration.get('type')!r:.40} is not offered: leave integrations out")
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("give hyperparameters inside method alone")
        method = self.method or Method(type="supervised")
        other = "dpo" if method.type == "supervised" else "supervised"
        if getattr(method, other) is not None:
            raise ValueError(f"method.{other} does not go with method.type {method.type}")
        if method.type == "supervised" and (self.hyperparameters or method.hyperparameters).beta != "auto":
            raise ValueError("beta goes with method.type dpo")
        return self

    def kind_and_spec(self) -> tuple[JobKind, dict[str, Any]]:
        """The job that is meant. Raises InvalidArgumentError where words contradict each other."""
        method = self.method or Method(type="supervised")
        asked = self.hyperparameters or method.hyperparameters
        spec: dict[str, Any] = {
            "model": self.model,
            "dataset": self.training_file,
            "eval_dataset": self.validation_file,
            "training": self._training(asked),
        }
        if method.type == "supervised":
            for name in ("method", "params", "reward_model", "margin"):
                if getattr(self.madpo, name):
                    raise InvalidArgumentError.in_field(f"madpo.{name}", "goes with method.type dpo")
            return JobKind.SUPERVISED_TRAINING, spec
        params = dict(self.madpo.params)
        if asked.beta != "auto":
            if "beta" in params:
                raise InvalidArgumentError.in_field("madpo.params.beta", "give beta once, here or in hyperparameters")
            params["beta"] = asked.beta
        spec["method"] = {"name": self.madpo.method or _METHOD, "params": params}
        margin = dict(self.madpo.margin)
        if self.madpo.reward_model is not None:
            margin["reward_model"] = self.madpo.reward_model
        if margin:
            spec["margin"] = margin
        return JobKind.POLICY_TRAINING, spec

    def _training(self, asked: Hyperparameters) -> dict[str, Any]:
        training = dict(self.madpo.training)
        named: dict[str, Any] = {}
        if asked.n_epochs != "auto":
            named["epochs"] = asked.n_epochs
        if asked.batch_size != "auto":
            named["global_batch_size"] = asked.batch_size
        if self.seed is not None:
            named["seed"] = self.seed
        if asked.learning_rate_multiplier != "auto":
            optimizer = training.get("optimizer") or {}
            if not isinstance(optimizer, dict):
                raise InvalidArgumentError.in_field("madpo.training.optimizer", "must be an object")
            optimizer = dict(optimizer)
            if "learning_rate" in optimizer:
                raise InvalidArgumentError.in_field(
                    "madpo.training.optimizer.learning_rate", "give it, or learning_rate_multiplier, not both"
                )
            optimizer["learning_rate"] = asked.learning_rate_multiplier * _DEFAULT_RATE
            training["optimizer"] = optimizer
        for name, value in named.items():
            if name in training:
                raise InvalidArgumentError.in_field(f"madpo.training.{name}", "is among the hyperparameters already")
            training[name] = value
        return training
