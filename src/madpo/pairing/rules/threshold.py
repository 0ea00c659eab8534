"""Couples of which the reward model is sure enough."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from madpo.pairing.rule import Couple, PairingRule, RuleConfig, couples


class ThresholdConfig(RuleConfig):
    """Parameters of sure couples."""

    margin: float = Field(default=1.0, gt=0)
    """Least difference of the rewards, in reward-model logits."""
    pairs: int = Field(default=1, ge=1, le=2016)
    """Couples of a prompt; all that are wide enough where they are fewer."""


def threshold(config: ThresholdConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """Different couples at random among those whose rewards are far enough apart; maybe none."""
    wide = [
        (first, second)
        for first, second in couples(len(rewards))
        if abs(rewards[first] - rewards[second]) >= config.margin
    ]
    return chance.sample(wide, min(config.pairs, len(wide)))


THRESHOLD = PairingRule(
    name="threshold",
    config=ThresholdConfig,
    summary="Two responses at random whose rewards are at least so far apart: no pair where there is none.",
    source="own",
    choose=threshold,
)
