"""The reward service as those that ask it reach it."""

import asyncio
from collections.abc import Iterator

from madpo.config import ScorerSettings, WorkerSettings
from madpo.errors import FailedPreconditionError, MadpoError, NotFoundError, UnauthenticatedError
from madpo.scoring.connection import connect_scorer
from madpo_client.doctor.findings import Finding, error, ok, warning
from madpo_client.doctor.settings import Service

_NO_MODEL = "model-" + "0" * 32
_TIMEOUT_S = 10.0


def check_reward(service: Service, settings: ScorerSettings) -> Iterator[Finding]:
    """Ask for a model there is none of: a service that knows that much has taken the token."""
    target = settings.reward_target
    if target is None:
        lacks = (
            "methods that need margins cannot train here"
            if isinstance(settings, WorkerSettings)
            else "nothing is scored"
        )
        yield warning(
            "reward",
            f"no reward service is named: {lacks}",
            f"set {service.variable('reward_target')}",
        )
        return
    try:
        asyncio.run(_ask(settings))
    except NotFoundError:
        yield ok("reward", f"{target} answers {'by TLS' if settings.tls_ca else 'in plain text'}, and takes our token")
    except UnauthenticatedError as refused:
        yield error(
            "reward",
            f"{target} refuses the token: {refused}",
            f"set {service.variable('reward_token')} to MADPO_REWARD_TOKEN of the reward service",
        )
    except FailedPreconditionError as wrong:
        yield error("reward", str(wrong), f"correct {service.variable('tls_ca')}, or the certificate it names")
    except MadpoError as failure:
        yield error(
            "reward",
            f"{target} does not answer: {failure}",
            f"start it, or correct {service.variable('reward_target')} and {service.variable('tls_ca')}",
        )


async def _ask(settings: ScorerSettings) -> None:
    async with connect_scorer(settings, load_timeout_s=_TIMEOUT_S) as client:
        await client.get_reward_model(_NO_MODEL)
