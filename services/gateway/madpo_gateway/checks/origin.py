"""Which stored model a reference comes down to: what is trained from one has its tokenizer, layers and context."""

from madpo.errors import NotFoundError
from madpo.jobs.base import ModelReference
from madpo_gateway.checks.references import Shelves

_MAX_CHAIN = 100
"""Jobs that are followed from one that goes on from another."""


async def origin(reference: ModelReference, shelves: Shelves) -> str | None:
    """The id of the model at the beginning of the chain; None where it leads nowhere, which is refused elsewhere."""
    for _ in range(_MAX_CHAIN):
        if reference.model_id is not None:
            return reference.model_id
        try:
            job = await shelves.queue.get(reference.job_id or "")
            reference = ModelReference.model_validate(job.spec["model"])
        except (NotFoundError, KeyError, ValueError):
            return None
    return None
