"""Couples of which the reward model is least sure: those whose label by a person or a judge tells it most."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from madpo.pairing.rule import Couple, PairingRule, RuleConfig, couples


class LeastSureConfig(RuleConfig):
    """Parameters of unsure couples."""

    pairs: int = Field(default=1, ge=1, le=2016)
    """Couples of a prompt; all there are where they are fewer."""


def least_sure(config: LeastSureConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """Those whose rewards are nearest to each other, the nearest first; of equal ones the first."""
    nearest = sorted(couples(len(rewards)), key=lambda couple: abs(rewards[couple[0]] - rewards[couple[1]]))
    return nearest[: config.pairs]


LEAST_SURE = PairingRule(
    name="least_sure",
    config=LeastSureConfig,
    summary="The rewards nearest to each other: pairs to have labelled by somebody else, not to train on.",
    source="Lewis and Gale, arXiv:cmp-lg/9407020",
    choose=least_sure,
)
