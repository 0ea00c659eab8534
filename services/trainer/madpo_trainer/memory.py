"""What a training step will take of memory, before the first one: measured on two rows, scaled to a micro-batch.

Weights, gradients and optimizer state are counted. Activations are what autograd keeps of a forward pass: what a longer
row has more of it, by token, times the tokens of the largest micro-batch, and what does not depend on the row (under
autocast, copies of the weights). Beside them the backward pass needs about one block more, or what log-probs take.
Where blocks are computed again, their inputs are kept, and all else for one block at a time.

And what is left of a shortage where ranks must keep in step, so that none can go back alone: a note in the object store
with which the next attempt begins in smaller pieces.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.models.memory import available_bytes
from madpo.models.scores import inner_model
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo_trainer.blocks import transformer_blocks

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_ONE_AND_ITS_GRADIENTS = 1.25
"""What a block keeps, and what its backward pass makes of it at one time, over the former."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on this rank's device."""

    weights: int
    gradients: int
    optimizer: int
    """What AdamW remembers on the device."""
    activations: int
    """Of the largest micro-batch."""
    recomputed: int
    """What they are where blocks are computed again."""
    available: int | None
    """What was free when the estimate was made, with weights and moments there; None where the system does not say."""

    @property
    def to_come(self) -> int:
        """Beside weights and moments, which are there: gradients and activations."""
        return self.gradients + self.activations

    @property
    def training_state(self) -> int:
        """Gradients, and what AdamW remembers."""
        return self.gradients + self.optimizer

    @property
    def fits(self) -> bool:
        """Whether the step should fit in what is free."""
        return self.available is None or self.to_come <= self.available

    def recomputing(self) -> Self:
        """The same, with blocks that are computed again."""
        return replace(self, activations=self.recomputed)

    def figures(self) -> dict[str, float]:
        """In MiB."""
        known = {"weights": self.weights, "training_state": self.training_state, "activations": self.activations}
        if self.available is not None:
            known["available"] = self.available
        return {f"{name}_mib": round(value / _MIB, 1) for name, value in known.items()}


def estimate_memory(
    model: nn.Module,
    runs: Mapping[int, Callable[[], Tensor]],
    *,
    largest_tokens: int,
    head: int = 0,
    optimizer: int | None = None,
) -> MemoryEstimate:
    """Estimate a step by running the model on one row or two, without dropout; no block is computed again in it.

    Args:
        model: Where it will be trained.
        runs: By their tokens, losses with gradient: of a short row and of a long one where there are.
        largest_tokens: Tokens of the largest micro-batch.
        head: Bytes that log-probs take while they are computed.
        optimizer: Bytes that it remembers on the device; None for two numbers a trained weight.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    kept = {tokens: _kept_bytes(model, run) for tokens, run in runs.items()}
    model.train(was_training)
    (least, least_kept), (most, most_kept) = min(kept.items()), max(kept.items())
    per_token = (most_kept - least_kept) / (most - least) if most > least else most_kept / most
    fixed = max(0.0, most_kept - per_token * most)
    blocks, one_block = _block_count(model), per_token * largest_tokens / _block_count(model)
    inputs = blocks * _hidden_bytes(model) * largest_tokens
    gradients = sum(_bytes(each) for each in model.parameters() if each.requires_grad)
    return MemoryEstimate(
        weights=sum(map(_bytes, model.parameters())),
        gradients=gradients,
        optimizer=2 * gradients if optimizer is None else optimizer,
        activations=round(fixed + per_token * largest_tokens + max(one_block, head)),
        recomputed=round(inputs + max(_ONE_AND_ITS_GRADIENTS * one_block + fixed / blocks, head)),
        available=available_bytes(device),
    )


def note_shortage(store: ObjectStore, job_id: str, shortage: Mapping[str, int]) -> None:
    """Leave a note for the next attempt. Any rank may, and several: they write the same."""
    store.put(keys.memory_shortage(job_id), documents.seal(shortage))


def noted_shortage(store: ObjectStore, job_id: str) -> dict[str, int]:
    """What an attempt before this one told, as in `TrainingState.memory_shortage`; empty when there was nothing."""
    key = keys.memory_shortage(job_id)
    try:
        return documents.unseal(store.get(key), key=key)
    except NotFoundError:
        return {}


def usable_shortage(store: ObjectStore, job_id: str) -> dict[str, int]:
    """What `noted_shortage` says, where smaller micro-batches may still do.

    Raises:
        FailedPreconditionError: Every row went alone already.
    """
    shortage = noted_shortage(store, job_id)
    if shortage and not shortage["after"]:
        raise shortage_error(shortage)
    return shortage


def shortage_error(shortage: Mapping[str, int], reason: str = "") -> FailedPreconditionError:
    """What ends a job whose memory is short of a single row."""
    return FailedPreconditionError(
        f"memory ran out in step {shortage['step']} with a single row in a micro-batch{reason} "
        "(lower training.micro_batch_tokens or max_tokens, or use activation_checkpointing or lora)"
    )


def _block_count(model: nn.Module) -> int:
    if not isinstance(inner_model(model), PreTrainedModel):
        return 1
    try:
        return len(transformer_blocks(model))
    except InvalidArgumentError:
        return 1


def _hidden_bytes(model: nn.Module) -> int:
    """Of what goes from block to block, by token."""
    inner = inner_model(model)
    if not isinstance(inner, PreTrainedModel):
        return 0
    return int(inner.config.get_text_config().hidden_size * inner.get_input_embeddings().weight.itemsize)


def _kept_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """What autograd keeps of a forward pass, weights not counted."""
    weights = {_local(each).untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _local(tensor).untyped_storage()
        base = tensor if tensor._base is None else tensor._base
        # A weight that was gathered from other ranks is kept by nobody.
        is_weight = isinstance(base, nn.Parameter) or (base.is_leaf and base.requires_grad)
        if storage.data_ptr() not in weights and not is_weight:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run()
    torch.autograd.backward(loss)
    model.zero_grad(set_to_none=True)
    return sum(kept.values())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bytes(tensor: Tensor) -> int:
    return int(_local(tensor).nbytes)
