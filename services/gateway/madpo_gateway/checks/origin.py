"""Which stored model a reference comes down to: what is trained from one has its tokenizer, layers and context."""

import asyncio
import json
from typing import Any

from madpo.errors import NotFoundError
from madpo.jobs.base import ModelReference
from madpo.types import Model
from madpo_gateway.checks.references import Shelves

_MAX_CHAIN = 100
"""Jobs that are followed from one that goes on from another."""


async def origin(reference: ModelReference, shelves: Shelves) -> str | None:
    """The id of the model at the beginning of the chain; None where it leads nowhere, which is refused elsewhere."""
    for _ in range(_MAX_CHAIN):
        if reference.model_id is not None:
            return reference.model_id
        try:
            job = await shelves.job(reference.job_id or "")
            reference = ModelReference.model_validate(job.spec["model"])
        except (NotFoundError, KeyError, ValueError):
            return None
    return None


async def origin_model(reference: ModelReference, shelves: Shelves) -> Model | None:
    """The model at the beginning of the chain; None where it leads nowhere, which is refused elsewhere."""
    model_id = await origin(reference, shelves)
    if model_id is None:
        return None
    try:
        return await asyncio.to_thread(shelves.models.get, model_id)
    except NotFoundError:
        return None


def model_config(model: Model, shelves: Shelves) -> dict[str, Any]:
    """A model's `config.json`, of an adapter that of its base; empty where there is none that can be read."""
    try:
        with shelves.models.open_file(model.base_model_id or model.model_id, "config.json") as file:
            config = json.load(file)
    except (NotFoundError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
