"""What a job asks of the layers that get an adapter: names that the model has, and expressions that come to an end."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from madpo.adapter_targets import layers_of_tensors, require_layers
from madpo.errors import InvalidArgumentError
from madpo.expressions import matching
from madpo.jobs.training import LoraParameters, is_pattern
from madpo.types import Model
from madpo_gateway.checks.references import Shelves

_HEADS = {"causal_lm": frozenset({"lm_head", "embed_out"}), "reward": frozenset({"score", "classifier"})}
"""By kind of model, layers that may have no tensors of their own: tied to the embeddings, or made by the training."""
_FIELDS = ("target_modules", "exclude_modules")
_MATCHED_WITHIN_S = 10.0
_MATCHING = ThreadPoolExecutor(2, thread_name_prefix="expressions")
"""Expressions without end keep their like waiting, and nobody else."""


async def unfit_layers(
    lora: LoraParameters, model: Model, *, kind: str, shelves: Shelves
) -> AsyncIterator[tuple[str, str]]:
    """Fields that name layers which are not there, or can carry no adapter, and what may be named instead.

    Args:
        lora: Of the job.
        model: That is trained.
        kind: Of the model that the job leaves.
        shelves: Where things are looked up.
    """
    layers = await asyncio.to_thread(_layers, model, kind, shelves)
    for field in _FIELDS:
        names: tuple[str, ...] = getattr(lora, field)
        pool = _MATCHING if any(map(is_pattern, names)) else None
        for description in await asyncio.get_running_loop().run_in_executor(pool, _problems, names, layers, kind):
            yield f"training.lora.{field}", description


def _layers(model: Model, kind: str, shelves: Shelves) -> set[str]:
    tensors = shelves.models.tensors(model.base_model_id or model.model_id)
    layers = layers_of_tensors({name: tensor.shape for name, tensor in tensors.items()})
    if kind == "reward":  # which has a head of its own instead
        layers = {layer for layer in layers if layer.rpartition(".")[2] not in _HEADS["causal_lm"]}
    return layers


def _problems(given: Sequence[str], layers: Collection[str], kind: str) -> list[str]:
    # Paths of layers in memory may differ from those in the files; their last names do not.
    names = [last for name in given if (last := name.rpartition(".")[2]) not in _HEADS[kind] and not is_pattern(name)]
    try:
        require_layers(names, layers, field="")
        matching([name for name in given if is_pattern(name)], sorted(layers), within_s=_MATCHED_WITHIN_S)
    except InvalidArgumentError as error:
        return [violation.description for violation in error.violations] or [str(error)]
    return []
