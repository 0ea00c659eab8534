"""Statistical rejection sampling: responses as if from the policy that is best for the rewards."""

from collections.abc import Sequence
from random import Random

from pydantic import Field

from madpo.pairing.rule import Couple, PairingRule, RuleConfig


class RejectionConfig(RuleConfig):
    """Parameters of rejection sampling."""

    temperature: float = Field(default=0.5, gt=0)
    """In reward-model logits: towards 0 only the best response is accepted, towards infinity all are."""
    accepted: int = Field(default=2, ge=2, le=64)
    """Responses to accept of each prompt; all where there are fewer. Each is in one couple at most."""


def rejection(config: RejectionConfig, rewards: Sequence[float], chance: Random) -> list[Couple]:
    """Couples of accepted responses, in the order in which they were accepted: the first two, the next two...

    Every round goes through the responses that are left, in their order, and accepts each with the probability that
    `madpo.losses.rso.rso_accept` says, which is 1 for the best of them.
    """
    import torch

    from madpo.losses.rso import rso_accept

    left = list(range(len(rewards)))
    accepted: list[int] = []
    while left and len(accepted) < config.accepted:
        values = torch.tensor([rewards[place] for place in left], dtype=torch.float64)
        chances = rso_accept(values, temperature=config.temperature).tolist()
        taken = [place for place, likely in zip(left, chances, strict=True) if chance.random() < likely]
        accepted += taken
        left = [place for place in left if place not in set(taken)]
    accepted = accepted[: config.accepted]
    return list(zip(accepted[::2], accepted[1::2], strict=False))


REJECTION = PairingRule(
    name="rejection",
    config=RejectionConfig,
    summary="Rejection sampling by reward: pairs as the policy would draw them that is optimal for the rewards.",
    source="Liu et al., arXiv:2309.06657",
    choose=rejection,
)
