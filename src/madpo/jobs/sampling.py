"""How responses are drawn."""

from typing import Annotated

from pydantic import Field

from madpo.jobs.base import Spec
from madpo.types import AtMost

Temperature = Annotated[float, Field(ge=0, le=10)]


class SamplingParameters(Spec):
    """How responses are drawn."""

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], AtMost(64)] = Field(
        default=(1.0,), min_length=1
    )
    """Sampling temperatures; responses are drawn at each of them. 0 takes the likeliest token each time (greedy)."""
    samples_per_prompt: int = Field(default=1, ge=1, le=64)
    """Responses to each prompt at each temperature."""
    max_new_tokens: Annotated[int, AtMost(1_048_576)] = Field(default=128, ge=1)
    """Longest response."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Where chance starts: the same seed draws the same responses."""
