"""What a job asks of the files of its models: a tokenizer, a template for messages, the layers that get an adapter."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from madpo.data.tokenizer import NO_FAST_FORM, READ_AS_THEY_ARE
from madpo.errors import CorruptObjectError, NotFoundError
from madpo.jobs.base import ModelReference, NeedsModel, Spec, references
from madpo.jobs.registry import kind_of
from madpo.model_files.chat_templates import renders, template_names
from madpo.model_files.end_of_text import lacks_end_token
from madpo.types import Dataset, Model
from madpo_gateway.checks.adapter_layers import unfit_layers
from madpo_gateway.checks.origin import origin_model
from madpo_gateway.checks.references import Shelves

_TOKENIZER = re.compile(r"tokenizer[^/]*|vocab[^/]*|[^/]+\.(model|spm)")
_NO_END = "a tokenizer without an EOS token"
_NAME_END = 'name one of its tokens as "eos_token" in tokenizer_config.json and upload it again, or give messages'


@dataclass(frozen=True, slots=True)
class _Chat:
    """The first row of a dataset that is of messages with tools, or of messages without."""

    dataset_id: str
    row: int
    tools: bool


async def unfit_models(spec: Spec, *, datasets: dict[str, Dataset], shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Fields whose model lacks what the job needs of it, and what to do about each.

    Args:
        spec: Of any kind.
        datasets: What it refers to, by field.
        shelves: Where things are looked up.
    """
    found: dict[str, Model] = {}
    for reference in references(spec):
        # The reference of an evaluation is given the tokens of its policy.
        if isinstance(reference.need, NeedsModel) and reference.path != "reference":
            model = await origin_model(cast(ModelReference, reference.target), shelves)
            if model is not None:
                found[reference.path] = model
    chats = await asyncio.to_thread(_chats, datasets, shelves) if found else []
    texts = await asyncio.to_thread(_texts, datasets, shelves) if found else ""
    for path, model in found.items():
        owner = await asyncio.to_thread(tokenizer_owner, model, shelves)
        if owner is None:
            yield path, f"{model.model_id} has no tokenizer: upload it with the files of one"
        elif not any(file.path in READ_AS_THEY_ARE for file in owner.files):
            yield path, f"{owner.model_id} has no tokenizer that can be loaded: {NO_FAST_FORM}; upload it again then"
        elif chats and (chat := _unrendered(chats, await asyncio.to_thread(_template_names, owner, shelves))):
            yield path, f"{model.model_id} has no {chat}"
        elif texts != "" and await asyncio.to_thread(_lacks_end_token, owner, shelves):
            yield path, f"{model.model_id} has {_NO_END}, {texts}: {_NAME_END}"
    training = getattr(spec, "training", None)
    lora = getattr(training, "lora", None)
    if lora is not None and "model" in found:
        kind = kind_of(spec).leaves_model or "causal_lm"
        async for name, problem in unfit_layers(lora, found["model"], kind=kind, shelves=shelves):
            yield name, problem


def tokenizer_owner(model: Model, shelves: Shelves) -> Model | None:
    """The model whose tokenizer is used: of an adapter its own, or that of its base; None where there is none."""
    while True:
        if any(_TOKENIZER.fullmatch(file.path) for file in model.files):
            return model
        if model.base_model_id is None:
            return None
        model = shelves.models.get(model.base_model_id)


def _chats(datasets: dict[str, Dataset], shelves: Shelves) -> list[_Chat]:
    """Where the datasets have messages, with tools and without."""
    found = []
    for dataset_id in dict.fromkeys(dataset.dataset_id for dataset in datasets.values()):
        with suppress(NotFoundError, CorruptObjectError):
            for tools in (False, True):
                row = shelves.datasets.first_chat(dataset_id, tools=tools)
                if row is not None:
                    found.append(_Chat(dataset_id, row, tools))
    return found


def _texts(datasets: dict[str, Dataset], shelves: Shelves) -> str:
    """Which rows end with EOS, since they are text; "" where there are none."""
    for dataset_id in dict.fromkeys(dataset.dataset_id for dataset in datasets.values()):
        with suppress(NotFoundError, CorruptObjectError):
            row = shelves.datasets.first_text(dataset_id)
            if row is not None:
                return f"which ends every text, and rows of {dataset_id} are text (row {row} is the first)"
    return ""


def _lacks_end_token(model: Model, shelves: Shelves) -> bool:
    files = (_object(model, name, shelves) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    return lacks_end_token(*files)


def _template_names(model: Model, shelves: Shelves) -> frozenset[str]:
    return template_names([file.path for file in model.files], _object(model, "tokenizer_config.json", shelves))


def _object(model: Model, name: str, shelves: Shelves) -> dict[str, Any]:
    """What a JSON file of a model holds; empty where there is none that can be read."""
    value: Any = None
    with suppress(NotFoundError, ValueError), shelves.models.open_file(model.model_id, name) as file:
        value = json.load(file)
    return value if isinstance(value, dict) else {}


def _unrendered(chats: Sequence[_Chat], names: frozenset[str]) -> str:
    """Which messages none of the templates is for, and what to do; "" where there are none."""
    for chat in chats:
        if not renders(names, tools=chat.tools):
            which = f"default chat template (only {', '.join(sorted(names))})" if names else "chat template"
            without = "" if chat.tools or not names else " without tools"
            return (
                f"{which}, and rows of {chat.dataset_id} are messages{without} (row {chat.row} is the first): "
                "give rows of text, or a model whose tokenizer was saved with a template"
            )
    return ""
