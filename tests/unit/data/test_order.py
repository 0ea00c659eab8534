import itertools

from hypothesis import given
from hypothesis import strategies as st

from madpo.data.order import Schedule


@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 5),
    epochs=st.sampled_from([0.5, 1, 2, 3]),
)
def test_every_epoch_takes_every_row_once_and_nothing_is_dropped(rows, batch_size, seed, epochs):
    schedule = Schedule.plan(rows=rows, batch_size=batch_size, seed=seed, epochs=epochs, max_steps=None)

    order = list(itertools.chain.from_iterable(schedule.batch(step) for step in range(schedule.total_steps)))

    assert len(order) == schedule.total_rows
    for first in range(0, len(order) - rows + 1, rows):
        assert sorted(order[first : first + rows]) == list(range(rows))


def test_a_step_is_a_function_of_seed_and_step_alone():
    schedule = Schedule.plan(rows=100, batch_size=8, seed=3, epochs=2, max_steps=None)
    again = Schedule.plan(rows=100, batch_size=8, seed=3, epochs=2, max_steps=None)
    other = Schedule.plan(rows=100, batch_size=8, seed=4, epochs=2, max_steps=None)

    assert [again.batch(step) for step in (20, 0, 7)] == [schedule.batch(step) for step in (20, 0, 7)]
    assert other.batch(0) != schedule.batch(0)
    assert schedule.batch(0) != schedule.batch(13)


def test_max_steps_overrides_epochs_and_counts_whole_batches():
    schedule = Schedule.plan(rows=10, batch_size=4, seed=0, epochs=1, max_steps=7)

    assert schedule.total_steps == 7
    assert all(len(schedule.batch(step)) == 4 for step in range(7))
    assert [schedule.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert [schedule.passes(steps) for steps in (0, 1, 5, 7)] == [0.0, 0.4, 2.0, 2.8]
    assert [schedule.epoch(2, place) for place in range(3)] == [0, 0, 1]
