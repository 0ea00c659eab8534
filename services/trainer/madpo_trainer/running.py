"""How training code asks a language model for log-probs: one micro-batch with gradient, or many rows without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from madpo.models.logps import LogpsFunction, ResponseGroup, ResponseLogps, padded_logps
from madpo_trainer.ranks import Ranks
from madpo_trainer.reference import ReferenceLogps, StoredLogps, assemble
from madpo_trainer.rows import chunks


class LogpsRunner:
    """A model and the way it is run.

    Args:
        model: Causal language model.
        micro_batch_size: Rows of one forward pass, where this class deals them.
        precision: Of the job.
        ranks: Who shares the work.
        logps_of: How the model is run over groups.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        micro_batch_size: int,
        precision: str,
        ranks: Ranks,
        logps_of: LogpsFunction = padded_logps,
    ) -> None:
        self.model, self.ranks, self.micro_batch_size, self.precision = model, ranks, micro_batch_size, precision
        self._logps_of = logps_of

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def logps(self, groups: Sequence[ResponseGroup], *, model: Any = None, vocabulary: bool = False) -> ResponseLogps:
        """Log-probs of one micro-batch, in the mode the model is in; of another model where one is given."""
        return self._logps_of(self.model if model is None else model, groups, vocabulary=vocabulary)

    def all_logps(self, groups: Sequence[ResponseGroup], *, tokens: bool = False) -> StoredLogps:
        """Log-probs of the present weights for many rows, without gradient or dropout; all ranks must call.

        Args:
            groups: One per row.
            tokens: Give those of single tokens as well.
        """
        lengths = [sum(len(group.prompt_ids) + len(ids) for ids in group.responses) for group in groups]
        order = sorted(range(len(groups)), key=lengths.__getitem__)

        def compute(indices: Sequence[int]) -> tuple[Sequence[int], Sequence[int], ReferenceLogps, Tensor]:
            asked = [groups[index] for index in indices]
            found = self.logps(asked)
            token_logps = found.token_logps.float().cpu() if tokens else None
            logps = ReferenceLogps(found.logps.float().cpu(), token_logps)
            return indices, [len(group.responses) for group in asked], logps, found.tokens.cpu()

        with torch.no_grad(), evaluating(self.model, self.precision):
            return assemble(self.ranks.map(compute, list(chunks(order, self.micro_batch_size))))


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
