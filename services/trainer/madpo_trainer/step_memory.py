"""Whether a job's steps fit into memory, and whether blocks are computed again so that they do."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from madpo.jobs.training import TrainingParameters
from madpo.models.packed.head import head_of, working_bytes
from madpo.models.scores import inner_model
from madpo_trainer.adam import most_visiting, remembered_bytes
from madpo_trainer.blocks import can_recompute, recompute_blocks
from madpo_trainer.memory import MemoryEstimate, estimate_memory
from madpo_trainer.micro_batches import MicroBatches
from madpo_trainer.objectives.base import Objective
from madpo_trainer.precision import training_autocast
from madpo_trainer.ranks import Ranks
from madpo_trainer.sharding import local

logger = logging.getLogger(__name__)

_ROWS_LOOKED_AT = 64
"""For a short and a long one, by which a step's memory is estimated."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What was found, and decided by it."""

    estimate: MemoryEstimate
    recompute: bool
    """Blocks are computed again in the backward pass."""
    reason: str
    """Why, or why not."""

    def summary(self) -> dict[str, Any]:
        """For the record of the job."""
        return {
            "activation_checkpointing": self.recompute,
            "activation_checkpointing_reason": self.reason,
            "memory_estimate": self.estimate.figures(),
        }


def settle_step_memory(
    objective: Objective, micro_batches: MicroBatches, parameters: TrainingParameters, ranks: Ranks, *, batch_size: int
) -> StepMemory:
    """Estimate a step, and have blocks computed again where the job leaves that open and it would not fit without.

    All ranks must call; they decide alike, by the one that has least room.

    Args:
        objective: What is trained, where it will be.
        micro_batches: How its rows are split.
        parameters: Of the job.
        ranks: All of them.
        batch_size: Rows of a step.
    """
    estimate = ranks.together(lambda: _estimate(objective, micro_batches, parameters, batch_size))
    asked = parameters.activation_checkpointing
    lacks = max(ranks.gather(0.0 if estimate.fits else (estimate.to_come - (estimate.available or 0)) / _GIB))
    if asked is not None:
        settled = StepMemory(estimate, asked, f"training.activation_checkpointing: {str(asked).lower()}")
    elif not lacks:
        settled = StepMemory(estimate, recompute=False, reason="a step fits without")
    elif not can_recompute(objective.model):
        settled = StepMemory(estimate, recompute=False, reason="the model cannot do it")
    else:
        recompute_blocks(objective.model)
        settled = StepMemory(estimate, recompute=True, reason=f"without, a step would lack {lacks:.1f} GiB")
    if settled.recompute:
        settled = StepMemory(estimate.recomputing(), recompute=True, reason=settled.reason)
    if ranks.is_leader:
        _say(settled)
    return settled


def _estimate(
    objective: Objective, micro_batches: MicroBatches, parameters: TrainingParameters, batch_size: int
) -> MemoryEstimate:
    longest, lengths, model = objective.longest, objective.lengths, objective.model
    looked_at = range(min(_ROWS_LOOKED_AT, len(lengths)))
    short, long = (choose(looked_at, key=lengths.__getitem__) for choose in (min, max))
    largest = max(longest, min(micro_batches.budget_tokens, batch_size * longest))
    with training_autocast(next(model.parameters()).device.type, parameters):
        return estimate_memory(
            model,
            {lengths[row]: partial(objective.idle, row) for row in (short, long)},
            largest_tokens=largest,
            head=_head_bytes(model, micro_batches, largest),
            optimizer=_optimizer_bytes(model, parameters),
        )


def _optimizer_bytes(model: torch.nn.Module, parameters: TrainingParameters) -> int | None:
    """What is remembered on the device in another form than that of AdamW."""
    trained = [each for each in model.parameters() if each.requires_grad]
    if parameters.optimizer.offload:
        return most_visiting(local(each).numel() for each in trained)
    if parameters.optimizer.name == "adamw":
        return None
    remembered = remembered_bytes(model, parameters.optimizer)
    return sum(remembered[id(each)] * local(each).numel() // each.numel() for each in trained)


def _head_bytes(model: torch.nn.Module, micro_batches: MicroBatches, tokens: int) -> int:
    """Padded rows have whole logits, which grow with their tokens; and a reward model has no such head."""
    inner = inner_model(model)
    if micro_batches.layout.name == "padded" or not isinstance(inner, PreTrainedModel):
        return 0
    head = head_of(inner)
    return 0 if head is None else working_bytes(head, tokens)


def _say(settled: StepMemory) -> None:
    estimate = settled.estimate
    logger.log(
        logging.INFO if estimate.fits else logging.WARNING,
        "memory of a step: %s; activations are %s: %s",
        "fits" if estimate.fits else "may not fit",
        "computed again" if settled.recompute else "kept",
        settled.reason,
        extra=estimate.figures(),
    )
