"""Python SDK of madpo: `Client` for a gateway, `madpo_client.embedded` for a stack of one's own on this machine.

from madpo_client import Client

with Client.from_environment() as client:
    pairs = client.datasets.upload("pairs.jsonl")
    reward = client.jobs.train_reward(model=base, dataset=pairs)
    policy = client.jobs.train_policy(model=base, dataset=pairs, params={"tau": 2.0}, reward_model=reward)
    policy.wait(progress=True)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madpo_client.client import Client
    from madpo_client.errors import JobFailedError
    from madpo_client.job import JobHandle

__all__ = ["Client", "JobFailedError", "JobHandle"]

_HOMES = {"Client": "client", "JobFailedError": "errors", "JobHandle": "job"}


def __getattr__(name: str) -> Any:
    """Import on first use: `madpo --help` does not pay for gRPC."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
