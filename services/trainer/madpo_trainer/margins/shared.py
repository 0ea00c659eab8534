"""One margin source for all ranks of a run."""

from collections.abc import Callable, Sequence

from madpo.types import PreferencePair
from madpo_trainer.margins.source import MarginSource
from madpo_trainer.ranks import Ranks


class SharedMargins:
    """Margins for all ranks of a run from the source that the leader has.

    Args:
        make: Makes the source, on the leader.
        ranks: Of the run.
    """

    def __init__(self, make: Callable[[], MarginSource], ranks: Ranks) -> None:
        self._ranks = ranks
        self._source: MarginSource | None = None

        def keep() -> None:
            self._source = make()

        ranks.lead(keep)

    def of(self, pairs: Sequence[PreferencePair], *, training: bool = False) -> list[float | None]:
        """Margins of any pairs; all ranks wait for the leader's source."""
        return self._ranks.lead(lambda: self._leaders.of(pairs, training=training))

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        if self._source is not None:
            self._source.start(step)

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows; all ranks wait for the leader's source."""
        return self._ranks.lead(lambda: self._leaders.take(step))

    def was_truncated(self, pair_id: str) -> bool:
        """As the leader's source knows; False on other ranks."""
        return self._source is not None and self._source.was_truncated(pair_id)

    def summary(self) -> dict[str, float]:
        """Counts so far, on all ranks."""
        return self._ranks.lead(lambda: self._leaders.summary())

    def close(self) -> None:
        """Stop looking ahead."""
        if self._source is not None:
            self._source.close()

    @property
    def _leaders(self) -> MarginSource:
        assert self._source is not None
        return self._source
