"""Planning of an epoch as the trainer does it: order, and micro-batches by tokens; nothing is trained."""

from collections.abc import Sequence

from bench.lengths import SHAPES, draw_lengths
from bench.meters import measure
from madpo.data.order import Schedule
from madpo.models.packed.capability import Layout
from madpo_trainer.micro_batches import MicroBatches

BATCH, BUDGET_TOKENS = 64, 4096


def plan(pairs: int) -> dict[str, float]:
    """Cost of all steps of an epoch; the lengths of all pairs, as the trainer holds them, are part of it."""

    def work() -> None:
        lengths: Sequence[int] = [pair.shared for pair in draw_lengths(SHAPES["128/128"], pairs, seed=0)]
        schedule = Schedule.plan(rows=pairs, batch_size=BATCH, seed=0, epochs=1, max_steps=None)
        batches = MicroBatches(Layout("packed"), budget_tokens=BUDGET_TOKENS)
        planned = sum(
            len(rows) for step in range(schedule.total_steps) for rows in batches.split(schedule.batch(step), lengths)
        )
        assert planned == pairs

    return measure(work)
