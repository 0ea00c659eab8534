"""How the rows of a global batch are split into forward passes."""

import tracemalloc

import numpy as np
import pytest

from madpo.data.order import Schedule
from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import Layout
from madpo_trainer.micro_batches import MicroBatches

LENGTHS = [3, 9, 4, 4, 30, 1, 7, 5]


@pytest.mark.parametrize("layout", ["packed", "unshared", "padded"])
def test_every_row_is_in_one_pass_and_only_a_long_one_is_over_the_budget(layout):
    rows = [7, 1, 4, 0, 4, 2, 3]

    passes = MicroBatches(Layout(layout), budget_tokens=12).split(rows, LENGTHS)

    assert sorted(row for each in passes for row in each) == sorted(rows)
    for each in passes:
        lengths = [LENGTHS[row] for row in each]
        tokens = len(each) * max(lengths) if layout == "padded" else sum(lengths)
        assert tokens <= 12 or each == [4]


def test_rows_that_are_run_alone_are_alone_in_their_pass():
    micro_batches = MicroBatches(Layout("alone"), budget_tokens=1000)

    assert sorted(micro_batches.split([7, 1, 4], LENGTHS)) == [[1], [4], [7]]
    assert micro_batches.length(ResponseGroup([1, 1, 1], ([5, 6, 2], [5, 2]))) == 6 + 5


def test_passes_without_padding_are_about_as_long_as_one_another():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 200, 64).tolist()

    passes = MicroBatches(Layout("packed"), budget_tokens=1000).split(range(64), lengths)

    sums = [sum(lengths[row] for row in each) for each in passes]
    assert len(passes) == -(-sum(lengths) // 1000)
    assert max(sums) - min(sums) < 50


def test_a_split_depends_on_nothing_but_rows_and_lengths():
    rows = [5, 2, 3, 6, 0, 7]
    make = lambda: MicroBatches(Layout("packed"), budget_tokens=10)  # noqa: E731

    assert make().split(rows, LENGTHS) == make().split(rows, tuple(LENGTHS))
    assert all(each == sorted(each, key=rows.index) for each in make().split(rows, LENGTHS))


def test_a_row_costs_what_its_layout_makes_of_it():
    group = ResponseGroup([1, 1, 1], ([5, 6, 2], [5, 7, 7, 7, 2]))

    costs = {
        name: MicroBatches(Layout(name), budget_tokens=1).length(group) for name in ("packed", "unshared", "padded")
    }

    assert costs == {"packed": 3 + 1 + 2 + 4, "unshared": 2 * 3 + 3 + 5, "padded": 2 * 8}


def test_a_million_pairs_are_planned_in_little_memory():
    rows = 1_000_000
    lengths = np.random.default_rng(0).integers(16, 2000, rows).astype(np.int32)
    tracemalloc.start()

    schedule = Schedule.plan(rows=rows, batch_size=32, seed=0, epochs=2, max_steps=None)
    micro_batches = MicroBatches(Layout("packed"), budget_tokens=4096)
    # Both epochs, the step between them, and enough in between that anything kept would show.
    planned = sum(
        len(micro_batches.split(schedule.batch(step), lengths)) for step in range(0, schedule.total_steps, 25)
    )

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert planned > 4 * schedule.total_steps // 25
    assert peak < 64 << 20
