"""What a job asks of its models' contexts: no row, prompt or response may be longer than a model can read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import ModelReference, Spec
from madpo.jobs.sampling import SamplingParameters
from madpo.model_files.context_limit import context_limit
from madpo_gateway.checks.origin import model_config, origin
from madpo_gateway.checks.references import Shelves


async def with_context_default(spec: Spec, *, shelves: Shelves) -> Spec:
    """The spec with `max_tokens` no larger than the model's context, where it does not say how long rows may be."""
    part = _part(spec)
    if part is None or "max_tokens" in part.model_fields_set:
        return spec
    limit = await _limit_of(_model(spec), shelves)
    if limit is None or limit >= part.max_tokens:
        return spec
    shorter = {"max_tokens": limit}
    return spec.model_copy(update=shorter if part is spec else {"training": part.model_copy(update=shorter)})


async def over_context(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Fields that ask for more than a model can read, and what to do about each."""
    part = _part(spec)
    if part is not None:
        limit = await _limit_of(_model(spec), shelves)
        if limit is not None and part.max_tokens > limit:
            name = "max_tokens" if part is spec else "training.max_tokens"
            yield name, f"is {part.max_tokens}, and the model reads {limit} tokens at most: give {limit} or less"
    sampling = getattr(spec, "sampling", None)
    if isinstance(sampling, SamplingParameters):
        for field in ("model", "reference"):
            reference = getattr(spec, field, None)
            limit = None if reference is None else await _limit_of(reference, shelves)
            if limit is not None and sampling.max_new_tokens >= limit:
                yield (
                    "sampling.max_new_tokens",
                    f"is {sampling.max_new_tokens}, and the {field} reads {limit} tokens at most, prompt and "
                    f"response together: give less than {limit}",
                )


def _part(spec: Any) -> Any:
    """The part of a spec that says how long rows may be."""
    return next((part for part in (spec, getattr(spec, "training", None)) if hasattr(part, "max_tokens")), None)


def _model(spec: Any) -> ModelReference:
    reference: ModelReference = spec.model
    return reference


async def _limit_of(reference: ModelReference, shelves: Shelves) -> int | None:
    """What a model can read: what is trained from one can read as much as that. None where nothing is known."""
    model_id = await origin(reference, shelves)
    return None if model_id is None else await asyncio.to_thread(_stored_limit, model_id, shelves)


def _stored_limit(model_id: str, shelves: Shelves) -> int | None:
    try:
        return context_limit(model_config(shelves.models.get(model_id), shelves))
    except (NotFoundError, InvalidArgumentError, ValueError, AttributeError):
        return None
