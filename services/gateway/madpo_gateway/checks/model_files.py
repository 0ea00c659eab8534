"""What a job asks of the files of its models: a tokenizer, a template for messages, the layers that get an adapter."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import cast

from madpo.adapter_targets import layers_of_tensors, require_layers
from madpo.data.tokenizer import NO_FAST_FORM, READ_AS_THEY_ARE
from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError
from madpo.jobs.base import ModelReference, NeedsModel, Spec, references
from madpo.jobs.registry import kind_of
from madpo.jobs.training import LoraParameters, is_pattern
from madpo.types import Dataset, Model
from madpo_gateway.checks.origin import origin_model
from madpo_gateway.checks.references import Shelves

_TOKENIZER = re.compile(r"tokenizer[^/]*|vocab[^/]*|[^/]+\.(model|spm)")
_TEMPLATES = re.compile(r"chat_template\.(jinja|json)|additional_chat_templates/.+")
_HEADS = {"causal_lm": frozenset({"lm_head", "embed_out"}), "reward": frozenset({"score", "classifier"})}
"""By kind of model, layers that may have no tensors of their own: tied to the embeddings, or made by the training."""


async def unfit_models(spec: Spec, *, datasets: dict[str, Dataset], shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Fields whose model lacks what the job needs of it, and what to do about each.

    Args:
        spec: Of any kind.
        datasets: What it refers to, by field.
        shelves: Where things are looked up.
    """
    chat: str | None = None
    found: dict[str, Model] = {}
    for reference in references(spec):
        # The reference of an evaluation is given the tokens of its policy.
        if isinstance(reference.need, NeedsModel) and reference.path != "reference":
            model = await origin_model(cast(ModelReference, reference.target), shelves)
            if model is not None:
                found[reference.path] = model
    if found:
        chat = await asyncio.to_thread(_chat_dataset, datasets, shelves)
    for path, model in found.items():
        owner = await asyncio.to_thread(tokenizer_owner, model, shelves)
        if owner is None:
            yield path, f"{model.model_id} has no tokenizer: upload it with the files of one"
        elif not any(file.path in READ_AS_THEY_ARE for file in owner.files):
            yield path, f"{owner.model_id} has no tokenizer that can be loaded: {NO_FAST_FORM}; upload it again then"
        elif chat is not None and not await asyncio.to_thread(_has_template, owner, shelves):
            yield (
                path,
                f"{model.model_id} has no chat template, and rows of {chat} are messages: give rows of text, or a "
                "model whose tokenizer was saved with a template",
            )
    training = getattr(spec, "training", None)
    lora = getattr(training, "lora", None)
    if lora is not None and "model" in found:
        kind = kind_of(spec).leaves_model or "causal_lm"
        for name, problem in await asyncio.to_thread(_absent_layers, lora, found["model"], kind, shelves):
            yield name, problem


def tokenizer_owner(model: Model, shelves: Shelves) -> Model | None:
    """The model whose tokenizer is used: of an adapter its own, or that of its base; None where there is none."""
    while True:
        if any(_TOKENIZER.fullmatch(file.path) for file in model.files):
            return model
        if model.base_model_id is None:
            return None
        model = shelves.models.get(model.base_model_id)


def _chat_dataset(datasets: dict[str, Dataset], shelves: Shelves) -> str | None:
    """A dataset whose first row is of messages."""
    for dataset in datasets.values():
        try:
            row = next(shelves.datasets.read(dataset.dataset_id), None)
        except (NotFoundError, CorruptObjectError):
            continue
        if row is not None and not isinstance(row.prompt, str):
            return dataset.dataset_id
    return None


def _has_template(model: Model, shelves: Shelves) -> bool:
    if any(_TEMPLATES.fullmatch(file.path) for file in model.files):
        return True
    try:
        with shelves.models.open_file(model.model_id, "tokenizer_config.json") as file:
            return bool(json.load(file).get("chat_template"))
    except (NotFoundError, ValueError, AttributeError):
        return False


def _absent_layers(lora: LoraParameters, model: Model, kind: str, shelves: Shelves) -> list[tuple[str, str]]:
    """Names of layers that are not there, or can carry no adapter: the spec's field, and which may be named."""
    tensors = shelves.models.tensors(model.base_model_id or model.model_id)
    layers = layers_of_tensors({name: tensor.shape for name, tensor in tensors.items()})
    if kind == "reward":  # which has a head of its own instead
        layers = {layer for layer in layers if layer.rpartition(".")[2] not in _HEADS["causal_lm"]}
    problems: list[tuple[str, str]] = []
    for field in ("target_modules", "exclude_modules"):
        # Paths of layers in memory may differ from those in the files; their last names do not.
        names = [
            last
            for name in getattr(lora, field)
            if (last := name.rpartition(".")[2]) not in _HEADS[kind] and not is_pattern(name)
        ]
        try:
            require_layers(names, layers, field=f"training.lora.{field}")
        except InvalidArgumentError as error:
            problems += [(violation.field, violation.description) for violation in error.violations]
    return problems
