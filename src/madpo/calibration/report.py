"""The calibration of a reward model for a method: what a job stores as `calibration.json` and goes on from."""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from madpo.losses.scales import MarginScale, MarginTemperature

Rule = Literal["given", "quantile", "temperature", "fallback"]
"""How a number was found: as given; a quantile of |margin|; from the temperature on held-out pairs; or, where these fix
no temperature, by the fallback the field describes."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ReliabilityBin(_Part):
    """Held-out pairs of like confidence. Margins are as the method reads them: divided by the temperature in use."""

    confidence: float
    """Mean of sigmoid(|margin|), in [0.5, 1]."""
    accuracy: float
    """Share of them ordered as labelled."""
    pairs: int


class HeldOut(_Part):
    """The reward model on pairs it was not trained on; its raw margins, but for `ece_used` and `reliability`."""

    pairs: int
    accuracy: float
    """Share ordered as labelled; a margin of 0 counts half."""
    contradicted_ratio: float
    """Share with a margin below 0: the reward model prefers the response that people rejected."""
    loss: float
    """Mean of softplus(-margin), in nats."""
    ece: float
    """Expected calibration error: mean distance of confidence and accuracy."""
    temperature: float
    """Divisor of the margins that makes them log-odds; above 1: over-confident."""
    temperature_low: float
    """End of a 95 % interval of the temperature."""
    temperature_high: float | None
    """Other end; None where the pairs do not bound it."""
    temperature_fitted: bool
    """False where the pairs fix none: all are ordered rightly, or no better than by a coin."""
    ece_used: float
    """`ece` of the margins as the method reads them."""
    reliability: tuple[ReliabilityBin, ...]


class SubsetAccuracy(_Part):
    """The reward model on one part of a benchmark."""

    accuracy: float
    """Share of pairs ordered as labelled; a margin of 0 counts half."""
    ci: tuple[float, float]
    """95 % interval (Wilson)."""
    pairs: int
    ties: int
    """Pairs with a margin of 0."""


class SectionScore(_Part):
    """Several parts together."""

    accuracy: float
    ci: tuple[float, float]
    """95 % interval."""
    missing: tuple[str, ...] = ()
    """Parts of the section that the dataset does not have."""


class Subsets(_Part):
    """Held-out pairs by the part of a benchmark that each is of: its `source`, or `subset` as files may call it."""

    subsets: dict[str, SubsetAccuracy]
    sections: dict[str, SectionScore]
    """Of RewardBench, those of which there are parts."""
    score: SectionScore | None
    """Mean over the sections."""


class Margins(_Part):
    """Margins as the method reads them: divided by the temperature in use."""

    of: Literal["training", "held_out"]
    """Which pairs: training pairs where their margins had to be known, else the held-out ones."""
    pairs: int
    mean: float
    std: float
    contradicted_ratio: float
    absolute_quantiles: dict[str, float]
    """Quantiles of |margin|."""
    edges: tuple[float, ...]
    """Of the histogram's bins."""
    counts: tuple[int, ...]


class Weights(_Part):
    """What the method makes of margins before the first step, while the policy is the reference."""

    mean: float
    quantiles: dict[str, float]
    """Of the weights of the same pairs as in `Margins`."""
    reward_margin: tuple[float, ...]
    """Places of the curve, as the method reads margins."""
    weight: tuple[float, ...]


class TemperatureChoice(_Part):
    """What margins are divided by."""

    given: MarginTemperature
    value: float
    rule: Rule
    """The fallback is 1: margins as they are."""


class ScaleChoice(_Part):
    """A parameter of the method in units of the margin."""

    given: MarginScale
    value: float
    rule: Rule
    """The fallback is the quantile 0.95."""
    beyond_ratio: float
    """Share of the pairs in `Margins` whose |margin| is larger."""


class CalibrationReport(_Part):
    """Everything that was measured and chosen."""

    method: str
    params: dict[str, Any]
    """All parameters of the method, rules replaced by the numbers they gave."""
    temperature: TemperatureChoice
    scales: dict[str, ScaleChoice]
    """By the parameter's name."""
    held_out: HeldOut | None
    """None without held-out margins."""
    margins: Margins
    weights: Weights
    suggested_tau: float | None
    """Margin, as the method reads it, at which this reward model is 99.9 % sure; None where no temperature is fixed."""
    warnings: tuple[str, ...]
    subsets: Subsets | None = None
    """None where held-out rows name no parts."""

    def to_json(self) -> str:
        """The file `calibration.json`; equal reports give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    def summary(self) -> dict[str, Any]:
        """The figures for a job's result."""
        held_out = self.held_out
        measured = {} if held_out is None else held_out.model_dump(exclude={"reliability"})
        return {
            "held_out": measured,
            "temperature": self.temperature.model_dump(mode="json"),
            "scales": {name: scale.model_dump(mode="json") for name, scale in self.scales.items()},
            "margins": self.margins.model_dump(include={"of", "pairs", "contradicted_ratio", "absolute_quantiles"}),
            "weights": self.weights.model_dump(include={"mean", "quantiles"}),
            "suggested_tau": self.suggested_tau,
            "warnings": list(self.warnings),
        } | ({} if self.subsets is None else {"subsets": self.subsets.model_dump(mode="json")})

    def headline(self) -> str:
        """The report in one line."""
        parts = []
        if self.held_out is not None:
            parts = [
                f"accuracy {self.held_out.accuracy:.1%}",
                f"ECE {self.held_out.ece:.3f}",
                f"temperature {self.held_out.temperature:.2f}",
            ]
        pairs = f"{self.margins.pairs} {self.margins.of.replace('_', '-')} pairs"
        parts.append(f"contradicts {self.margins.contradicted_ratio:.0%} of {pairs}")
        if self.temperature.value != 1:
            parts.append(f"margins divided by {self.temperature.value:.3g}")
        parts += [f"{name} {scale.value:.3g} ({scale.rule})" for name, scale in self.scales.items()]
        return ", ".join(parts)
