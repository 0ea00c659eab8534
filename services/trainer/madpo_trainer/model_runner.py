"""How training code runs a model: one micro-batch with gradient, or many rows without, in the layout it can do."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from madpo.data.collate import collate_responses
from madpo.jobs.training import TrainingParameters
from madpo.models.logps import ResponseGroup, ResponseLogps, padded_logps
from madpo.models.packed.capability import Layout, prepare_layout, prove, prove_padding
from madpo.models.packed.logps import PackedLogps, packed_scores
from madpo.models.scores import padding_of, reward_scores
from madpo.worker.phase import Phase
from madpo_trainer.micro_batches import MicroBatches
from madpo_trainer.ranks import Ranks
from madpo_trainer.stored_reference import ReferenceLogps, StoredLogps, assemble

logger = logging.getLogger(__name__)


class ModelRunner:
    """A model and the way it is run.

    Args:
        model: Causal language model or reward model, in its place.
        layout: What its configuration allows, from `choose_layout`.
        parameters: Of the job.
        ranks: Who shares the work.
        gives_scores: It is a reward model.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        parameters: TrainingParameters,
        ranks: Ranks,
        gives_scores: bool = False,
    ) -> None:
        self.model, self.ranks, self.precision = model, ranks, parameters.precision
        self.micro_batches = MicroBatches(layout, budget_tokens=parameters.micro_batch_tokens)
        self._gives_scores = gives_scores

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def layout(self) -> Layout:
        """How groups are laid out."""
        return self.micro_batches.layout

    def prove_layout(self, groups: Sequence[ResponseGroup]) -> None:
        """Prove the layout on real rows, before anything is computed in it, and say what came of it.

        All ranks must call.
        """
        values = self.scores if self._gives_scores else lambda groups: self.logps(groups).token_logps
        plain = _padded_scores if self._gives_scores else lambda model, groups: padded_logps(model, groups).token_logps
        with evaluating(self.model, self.precision):
            self.micro_batches.layout = prove(
                self.layout, self.model, groups, run=lambda model, groups: values(groups), reference=plain
            )
            if self._gives_scores:
                self.micro_batches.layout = prove_padding(self.layout, self.model, groups, scores=_padded_scores)
        if self.ranks.is_leader:
            name, reason = self.layout.name, self.layout.reason
            logger.log(
                logging.WARNING if reason else logging.INFO,
                "rows are laid out %s%s",
                name,
                f": {reason}" * bool(reason),
            )

    def logps(self, groups: Sequence[ResponseGroup], *, model: Any = None, vocabulary: bool = False) -> ResponseLogps:
        """Log-probs of one micro-batch, in the mode the model is in; of another model where one is given."""
        name = self.layout.name
        logps_of = padded_logps if name == "padded" else PackedLogps(share=name == "packed")
        return logps_of(self.model if model is None else model, groups, vocabulary=vocabulary)

    def scores(self, groups: Sequence[ResponseGroup]) -> Tensor:
        """Raw rewards of the responses of one micro-batch, one group after the other, [R]."""
        if self.layout.name == "padded":
            return _padded_scores(self.model, groups)
        if self.layout.name == "alone":
            single = [ResponseGroup(group.prompt_ids, (ids,)) for group in groups for ids in group.responses]
            return torch.cat([_padded_scores(self.model, [each]) for each in single])
        return packed_scores(self.model, groups, share=self.layout.name == "packed")

    def split(self, groups: Sequence[ResponseGroup]) -> list[list[int]]:
        """Places of many groups by forward pass."""
        return self.micro_batches.split(range(len(groups)), [self.micro_batches.length(group) for group in groups])

    def all_logps(
        self, groups: Sequence[ResponseGroup], phase: Phase | None = None, *, tokens: bool = False
    ) -> StoredLogps:
        """Log-probs of the present weights for many rows, without gradient or dropout; all ranks must call.

        Args:
            groups: One per row.
            phase: Counts rows.
            tokens: Give those of single tokens as well.
        """

        def compute(indices: Sequence[int]) -> tuple[Sequence[int], Sequence[int], ReferenceLogps, Tensor]:
            asked = [groups[index] for index in indices]
            found = self.logps(asked)
            token_logps = found.token_logps.float().cpu() if tokens else None
            logps = ReferenceLogps(found.logps.float().cpu(), token_logps)
            return indices, [len(group.responses) for group in asked], logps, found.tokens.cpu()

        with torch.no_grad(), evaluating(self.model, self.precision):
            return assemble(self.ranks.map_rows(compute, self.split(groups), phase))


def choose_layout(model: Any, parameters: TrainingParameters, *, needs_head: bool) -> Layout:
    """The layout of a job, as far as the model's configuration decides it; prepares the model for it."""
    if parameters.layout == "padded":
        return Layout("padded", "training.layout asks for it")
    return prepare_layout(model, needs_head=needs_head)


def _padded_scores(model: Any, groups: Sequence[ResponseGroup]) -> Tensor:
    rows = [sequence for group in groups for sequence in group.sequences]
    batch = collate_responses(rows, pad_id=padding_of(model)).to(next(model.parameters()).device)
    return reward_scores(model, batch.input_ids, batch.attention_mask)


@contextmanager
def evaluating(model: nn.Module, precision: str) -> Iterator[None]:
    """No dropout, the job's precision; training mode comes back after."""
    was_training = model.training
    model.eval()
    device_type = next(model.parameters()).device.type
    try:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        model.train(was_training)
