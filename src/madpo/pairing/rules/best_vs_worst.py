"""The response with the highest reward against the one with the lowest."""

from collections.abc import Sequence
from random import Random

from madpo.pairing.rule import Couple, PairingRule, RuleConfig


class BestVsWorstConfig(RuleConfig):
    """It has no parameters."""


def best_vs_worst(config: BestVsWorstConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """One couple; of equal rewards the first response stands for all."""
    return [(rewards.index(max(rewards)), rewards.index(min(rewards)))]


BEST_VS_WORST = PairingRule(
    name="best_vs_worst",
    config=BestVsWorstConfig,
    summary="The highest reward against the lowest: few pairs, with the widest margins.",
    source="Dong et al., arXiv:2405.07863",
    choose=best_vs_worst,
)
