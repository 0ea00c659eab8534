"""The preference method of a job, and where the reward margins it reads come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from madpo.jobs.base import REWARD, ModelReference, NeedsModel, Spec
from madpo.losses.scales import MarginTemperature
from madpo.types import AtMost


class PreferenceMethod(Spec):
    """A method of the registry with its parameters."""

    name: str = "madpo"
    """One of `madpo methods`."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The method's own parameters; those not given take its defaults."""


class MarginParameters(Spec):
    """Where reward margins come from."""

    source: Literal["reward_service", "dataset"] = "reward_service"
    """`reward_service` scores the pairs while the job runs; `dataset` takes the margins that its rows bring along."""
    reward_model: Annotated[ModelReference | None, NeedsModel(REWARD, is_served=True)] = None
    """The model whose margins are read; needed by `reward_service`."""
    temperature: MarginTemperature = 1.0
    """Divides margins before the method reads them, so that sigmoid(margin) is a probability; "fit" finds it on the
    held-out pairs, before the first step."""
    outage_policy: Literal["pause", "neutral", "fail"] = "pause"
    """While no scorer answers: wait, train with weight 1, or fail."""
    outage_budget_s: Annotated[float, AtMost(31_536_000)] = Field(default=900.0, gt=0)
    """Longest outage `pause` waits out, in seconds."""
    lookahead_batches: int = Field(default=32, ge=1, le=1024)
    """Most batches whose margins are asked for ahead of the step; how many it are follows from the scorer's latency."""

    @model_validator(mode="after")
    def _service_needs_a_model(self) -> Self:
        if self.source == "reward_service" and self.reward_model is None:
            raise ValueError("reward_service needs reward_model (or use source=dataset with a margin column)")
        return self
