"""The way to the reward service, as a worker's settings say."""

from madpo.config import WorkerSettings, revealed
from madpo.errors import FailedPreconditionError
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.tls import client_tls

REQUESTS_IN_FLIGHT = 4
"""Of one worker: keeps several replicas busy, and leaves room for other workers."""


def require_scorer(settings: WorkerSettings) -> None:
    """Raises FailedPreconditionError for a worker that knows no reward service, naming the setting."""
    if settings.reward_target is None:
        raise FailedPreconditionError(
            "the job needs a reward model's scores, and this worker knows no reward service "
            f"(set {settings.variable('reward_target')})"
        )


def connect_scorer(settings: WorkerSettings, *, load_timeout_s: float = 600.0) -> RewardClient:
    """A client of the reward service; close it. Raises as `require_scorer` does."""
    require_scorer(settings)
    return RewardClient(
        settings.reward_target or "",
        token=revealed(settings.reward_token),
        tls=client_tls(settings),
        load_timeout_s=load_timeout_s,
        requests_in_flight=REQUESTS_IN_FLIGHT,
    )
