"""What an evaluation asks of its reference: the tokens of the policy, where the files of both say which they have."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from madpo.errors import NotFoundError
from madpo.jobs.base import ModelReference, Spec
from madpo.types import Model
from madpo_gateway.checks.model_files import tokenizer_owner
from madpo_gateway.checks.origin import origin_model
from madpo_gateway.checks.references import Shelves

_FILE = "tokenizer.json"


async def other_tokens(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """The reference's field, where its vocabulary is another than the policy's."""
    policy, reference = getattr(spec, "model", None), getattr(spec, "reference", None)
    if not isinstance(policy, ModelReference) or not isinstance(reference, ModelReference):
        return
    ours, theirs = await origin_model(policy, shelves), await origin_model(reference, shelves)
    if ours is not None and theirs is not None and await asyncio.to_thread(_differ, ours, theirs, shelves):
        yield (
            "reference",
            f"{theirs.model_id} has other tokens than {ours.model_id}, so KL between them has no meaning: name the "
            "model the policy was trained from",
        )


def _differ(ours: Model, theirs: Model, shelves: Shelves) -> bool:
    """Whether the vocabularies are known to be two; other differences of tokenizers are found by the evaluator."""
    owners = [tokenizer_owner(model, shelves) for model in (ours, theirs)]
    digests = {_digest(owner) for owner in owners}
    if len(digests) < 2 or None in digests:
        return False
    first, second = (_vocabulary(owner, shelves) for owner in owners)
    return first is not None and second is not None and first != second


def _digest(owner: Model | None) -> str | None:
    """Of the tokenizer's file; None without one."""
    return next((file.sha256 for file in owner.files if file.path == _FILE), None) if owner is not None else None


def _vocabulary(owner: Model | None, shelves: Shelves) -> Any:
    """Of all tokens their ids, in the form of the file; None where it cannot be read."""
    if owner is None:
        return None
    try:
        with shelves.models.open_file(owner.model_id, _FILE) as file:
            return json.load(file)["model"]["vocab"]
    except (NotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
