"""How responses are drawn."""

from typing import Self

from pydantic import Field, model_validator

from madpo.jobs.base import Spec


class SamplingParameters(Spec):
    """How responses are drawn."""

    temperatures: tuple[float, ...] = (1.0,)
    """Sampling temperatures, in (0, 10]; responses are drawn at each of them."""
    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    """Responses to each prompt at each temperature."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest response."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Where chance starts: the same seed draws the same responses."""

    @model_validator(mode="after")
    def _positive_temperatures(self) -> Self:
        if not self.temperatures or min(self.temperatures) <= 0 or max(self.temperatures) > 10:
            raise ValueError("temperatures must be in (0, 10], and at least one")
        return self
