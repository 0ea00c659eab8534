"""Parameters in units of the reward margin, which a Bradley-Terry reward model fixes only up to a factor.

Such a parameter is a number, or a rule by which the job finds the number from the margins of its own reward model,
once, before the first step (`madpo.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from madpo.errors import InvalidArgumentError
from madpo.types import AtMost


class Quantile(BaseModel):
    """The number below which this share of the training pairs' |reward_margin| lies."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    quantile: float = Field(gt=0, lt=1)
    """Share of the pairs, linearly interpolated between two of them."""


def described(expected: str) -> WrapValidator:
    """Name what was expected once, where a union would list what each of its members misses."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(expected) from None

    return WrapValidator(check)


MarginScale = Annotated[
    Annotated[float, Field(gt=0)] | Quantile | Literal["auto"],
    described('must be a number > 0, {"quantile": q} with 0 < q < 1, or "auto"'),
    AtMost(1_000_000),
]
"""A positive number of reward-model logits, or a rule for it."""

MarginTemperature = Annotated[
    Annotated[float, Field(gt=0)] | Literal["fit"],
    described('must be a number > 0, or "fit"'),
    AtMost(1_000_000),
]
"""What margins are divided by before a method reads them, or a rule for it."""


def number(name: str, scale: float | Quantile | str) -> float:
    """A scale that must be a number by now. Raises InvalidArgumentError for a rule."""
    if isinstance(scale, (int, float)):
        return scale
    rule = scale.model_dump() if isinstance(scale, Quantile) else scale
    raise InvalidArgumentError(f"{name}={rule} becomes a number only inside a job; give a number here")


def fitted_names(temperature: MarginTemperature, scales: Mapping[str, MarginScale]) -> tuple[str, ...]:
    """What is found on held-out pairs: the margins' temperature, and parameters, by name."""
    names = ["temperature"] if temperature == "fit" else []
    return (*names, *(name for name, scale in scales.items() if scale == "auto"))
