"""What the training loop asks of an objective.

All ranks of a run make these calls in the same order; `StepWork.loss` alone is called per rank, for the micro-batches
dealt to it, and so makes no calls to `Ranks`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from madpo.worker.phase import Phase


class StepWork(Protocol):
    """One optimizer step of an objective over the rows of one global batch.

    Rows are told by their places in the batch: one that straddles two epochs may hold a row twice.
    """

    def loss(self, places: Sequence[int]) -> Tensor:
        """The micro-batch's share of the step's loss, with gradient.

        A sum over the rows divided by the *global* denominator, so that micro-batches add up to one big batch.
        """
        ...

    def finish(self) -> dict[str, float]:
        """Accept the step: keep running statistics and the ledger; the metrics of the step over all ranks."""
        ...

    def row_ids(self, places: Sequence[int]) -> list[str]:
        """Ids for error messages; those with a non-finite loss first."""
        ...


class Objective(Protocol):
    """A model with data and a loss."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row, for grouping micro-batches; worked out when they are asked for."""
        ...

    @property
    def longest(self) -> int:
        """Most tokens that a row may have."""
        ...

    def start(self, step: int) -> None:
        """Called once before the first step of this run."""
        ...

    def begin(self, step: int, rows: Sequence[int]) -> StepWork:
        """Prepare a step over the rows of the global batch; may wait for margins."""
        ...

    def idle(self, row: int = 0) -> Tensor:
        """Zero, by a forward pass over a row, with gradient like those of a step.

        Keeps a rank without work in step with others, and shows what a step takes of memory.
        """
        ...

    @property
    def held_out_rows(self) -> int:
        """How many rows `evaluate` looks at."""
        ...

    def evaluate(self, phase: Phase) -> dict[str, float]:
        """Figures on the held-out rows; empty without any. Raises Interrupted where the run is asked to stop.

        Args:
            phase: Counts held-out rows.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """What to report in the job's result beside the training figures."""
        ...

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What a resumed run needs beside model and optimizer, by file of the checkpoint; may be sharded."""
        ...

    def close(self) -> None:
        """Stop background work."""
        ...
