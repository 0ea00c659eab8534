"""Couples at random: what the policy says, whatever the reward model thinks of it."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from madpo.pairing.rule import Couple, PairingRule, RuleConfig, couples


class RandomPairConfig(RuleConfig):
    """Parameters of random couples."""

    pairs: int = Field(default=1, ge=1, le=2016)
    """Couples of a prompt; all there are where they are fewer."""


def random_pair(config: RandomPairConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """Different couples, each as likely as every other."""
    every = list(couples(len(rewards)))
    return chance.sample(every, min(config.pairs, len(every)))


RANDOM_PAIR = PairingRule(
    name="random_pair",
    config=RandomPairConfig,
    summary="Two responses at random: margins as wide as the policy's own differences.",
    source="Guo et al., arXiv:2402.04792",
    choose=random_pair,
)
