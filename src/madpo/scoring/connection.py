"""The way to the reward service, as a service's settings say."""

from typing import Any

from madpo.config import ScorerSettings, revealed
from madpo.errors import FailedPreconditionError
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls

REQUESTS_IN_FLIGHT = 4
"""Of one worker: keeps several replicas busy, and leaves room for other workers."""


def require_scorer(settings: ScorerSettings, *, wanted: str = "the job needs a reward model's scores") -> None:
    """Raises FailedPreconditionError for a service that knows no reward service, naming the setting."""
    if settings.reward_target is None:
        this = type(settings).__name__.removesuffix("Settings").lower()
        raise FailedPreconditionError(
            f"{wanted}, and this {this} knows no reward service (set {settings.variable('reward_target')})"
        )


def connect_scorer(
    settings: ScorerSettings, *, requests_in_flight: int = REQUESTS_IN_FLIGHT, **limits: Any
) -> RewardClient:
    """A client of the reward service; close it. Raises as `require_scorer` does.

    Args:
        settings: Where it is, and what it asks for.
        requests_in_flight: Most requests on their way at once.
        limits: Times, as `RewardClient` takes them.
    """
    require_scorer(settings)
    return RewardClient(
        settings.reward_target or "",
        token=revealed(settings.reward_token),
        tls=client_tls(settings),
        requests_in_flight=requests_in_flight,
        **limits,
    )
