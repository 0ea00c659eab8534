"""`python -m madpo_reward`: the reward service; with `health`, whether it serves."""

import sys

from prometheus_client import CollectorRegistry

from madpo.rpc.server import Service, run_service
from madpo_reward.settings import RewardSettings


def build(settings: RewardSettings, registry: CollectorRegistry) -> Service:
    """The service; torch is imported only once the settings are known to be right.

    Raises:
        FailedPreconditionError: The engine that they ask for is not installed.
    """
    settings.require_engine()
    from madpo_reward.service import RewardService

    return RewardService(settings, registry)


if __name__ == "__main__":
    sys.exit(run_service("reward", RewardSettings, build, token_field="token"))  # noqa: S106 - the name of a field
