"""Whose response stands behind whose prompt, for KTO's point of reference."""

import pytest
import torch

from madpo.data.order import Schedule
from madpo.errors import InvalidPairError
from madpo.types import PreferencePair
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.mismatched_responses import Mismatched
from madpo_trainer.stored_reference import StoredLogps


def row(number: int, *, prompt: int = 1, chosen: int = 1) -> PolicyRow:
    """A row whose prompt and chosen response are its number, some times over."""
    pair = PreferencePair(f"p{number}", "c", "r", row=number + 1)
    return PolicyRow(str(number), pair, [number] * prompt, ([number] * chosen, [99]))


def partners(rows, schedule, step, *, max_tokens=10):
    mismatched = Mismatched(rows, schedule, max_tokens=max_tokens)
    batch = schedule.batch(step)
    groups = mismatched.groups(step, batch)
    assert [group.prompt_ids[0] for group in groups] == batch
    return batch, [group.responses[0][0] for group in groups]


def test_each_prompt_gets_the_next_response_of_the_batch_however_the_batch_is_split():
    rows = [row(number) for number in range(8)]
    schedule = Schedule.plan(rows=8, batch_size=4, seed=0, epochs=1, max_steps=None)

    batch, found = partners(rows, schedule, 0)

    assert found == [*batch[1:], batch[0]]
    alone = Mismatched(rows, schedule, max_tokens=10).groups(0, [batch[2]])
    assert alone[0].responses[0] == [batch[3]]


def test_a_batch_of_one_takes_the_next_row_of_the_dataset():
    rows = [row(number) for number in range(3)]
    schedule = Schedule.plan(rows=3, batch_size=2, seed=0, epochs=1, max_steps=None)

    batch, found = partners(rows, schedule, 1)

    assert found == [(batch[0] + 1) % 3]


def test_what_does_not_fit_is_passed_over_and_a_row_that_nothing_fits_is_named():
    rows = [row(0), row(1, chosen=5), row(2), row(3)]
    schedule = Schedule.plan(rows=4, batch_size=4, seed=0, epochs=1, max_steps=None)

    _, found = partners(rows, schedule, 0, max_tokens=4)

    assert 1 not in found
    with pytest.raises(InvalidPairError, match=r"row 1: no chosen response of another row fits"):
        partners(
            [row(0, prompt=4), row(1, chosen=5)],
            Schedule.plan(rows=2, batch_size=2, seed=0, epochs=1, max_steps=None),
            0,
            max_tokens=5,
        )


def test_a_row_that_is_twice_in_a_batch_is_never_its_own_partner():
    rows = [row(0), row(1)]
    schedule = Schedule.plan(rows=2, batch_size=3, seed=0, epochs=3, max_steps=None)

    for step in range(2):
        batch, found = partners(rows, schedule, step)
        assert all(mine != theirs for mine, theirs in zip(batch, found, strict=True))


def test_reference_log_probs_are_found_by_step_and_row():
    rows = [row(number) for number in range(4)]
    schedule = Schedule.plan(rows=4, batch_size=3, seed=0, epochs=2, max_steps=None)
    mismatched = Mismatched(rows, schedule, max_tokens=10)

    def compute(groups, tokens):
        assert tokens.tolist() == [len(group.prompt_ids) + len(group.responses[0]) for group in groups]
        values = torch.tensor([-10.0 * group.prompt_ids[0] - group.responses[0][0] for group in groups])
        return StoredLogps(
            values, torch.ones(len(groups), dtype=torch.int64), torch.ones(len(groups), dtype=torch.int64)
        )

    mismatched.compute_reference(compute)

    for step in range(schedule.total_steps):
        batch = schedule.batch(step)
        groups = mismatched.groups(step, batch)
        expected = [-10.0 * group.prompt_ids[0] - group.responses[0][0] for group in groups]
        assert mismatched.reference_logps(step, batch).tolist() == expected
