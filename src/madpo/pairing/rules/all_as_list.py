"""All responses of a prompt as one list, for methods of lists."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from madpo.pairing.rule import Couple, PairingRule, RuleConfig, couples


class AllAsListConfig(RuleConfig):
    """Parameters of whole lists."""

    fewest: int = Field(default=2, ge=2, le=64)
    """Responses that a list must have; prompts with fewer fit ones are left out."""


def all_as_list(config: AllAsListConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """Each with each; nothing where there are too few, or all rewards are the same."""
    is_list = len(rewards) >= config.fewest and len(set(rewards)) > 1
    return list(couples(len(rewards))) if is_list else []


ALL_AS_LIST = PairingRule(
    name="all_as_list",
    config=AllAsListConfig,
    summary="All of a prompt, with their rewards as scores: leaves lists, for methods that rank them.",
    source="own",
    choose=all_as_list,
    leaves_lists=True,
)
