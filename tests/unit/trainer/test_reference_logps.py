"""Stored reference log-probs: what was computed in any order is found by row, and what was finished is kept."""

from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.torch import save

from madpo.errors import CorruptObjectError
from madpo.models.logps import ResponseGroup
from madpo.storage import bundle
from madpo.storage.local import LocalStore
from madpo.storage.local_copies import LocalCopies
from madpo.types import Job, JobKind, JobState
from madpo.worker.phase import Interrupted, Phase
from madpo.worker.workspace import Run
from madpo_trainer.ranks import OneRank
from madpo_trainer.stored_reference import ReferenceLogps, ReferenceStore, StoredLogps, assemble, plan_chunks
from tests.damage import DAMAGES

JOB = Job("job-" + "0" * 32, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, attempt=1)

# Row 0 has two responses of 1 and 2 tokens, row 1 three of 1 token, row 2 one of 2.
PARTS = [
    ([2, 0], [1, 2], ReferenceLogps(torch.tensor([-9.0, -1.0, -5.0]), torch.tensor([-4.0, -5, -1, -2, -3])), [2, 1, 2]),
    ([1], [3], ReferenceLogps(torch.tensor([-6.0, -7.0, -8.0]), torch.tensor([-6.0, -7, -8])), [1, 1, 1]),
]

GROUPS = [ResponseGroup([row] * (1 + row % 3), ([row] * (1 + row % 4), [row])) for row in range(12)]
LENGTHS = np.array([len(group.prompt_ids) + sum(map(len, group.responses)) for group in GROUPS])


def stored(*, tokens: bool) -> StoredLogps:
    return assemble(
        [
            (rows, counts, logps if tokens else ReferenceLogps(logps.logps, None), torch.tensor(lengths))
            for rows, counts, logps, lengths in PARTS
        ]
    )


class Model:
    """Gives log-probs that tell of what row they are; notes what was computed together, and may be stopped."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.together: list[list[int]] = []
        self._stop_at = stop_at

    def __call__(self, groups, phase) -> StoredLogps:
        if len(self.together) == self._stop_at:
            raise Interrupted
        self.together.append([group.prompt_ids[0] for group in groups])
        phase.advance(len(groups))
        values = [-float(group.prompt_ids[0]) - place / 10 for group in groups for place in range(2)]
        tokens = [len(ids) for group in groups for ids in group.responses]
        token_values = [value for value, count in zip(values, tokens, strict=True) for _ in range(count)]
        return StoredLogps(
            torch.tensor(values),
            torch.full([len(groups)], 2, dtype=torch.int32),
            torch.tensor(tokens, dtype=torch.int32),
            torch.tensor(token_values),
        )


@pytest.fixture
def get(tmp_path):
    def get(compute, *, rows=range(12), host="host"):
        rows = np.array(rows)
        reference = ReferenceStore(
            store=LocalStore(tmp_path / "store"),
            copies=LocalCopies(tmp_path / host),
            ranks=OneRank(),
            begin=partial(Phase, Run(tmp_path, JOB)),
            chunk_tokens=20,
        )
        return reference.load_or_compute("0" * 32, GROUPS, rows=rows, lengths=LENGTHS[rows], compute=compute)

    return get


def test_values_come_back_in_the_order_of_the_rows_that_are_asked_for():
    found = stored(tokens=True).logps([2, 0])

    assert found.logps.tolist() == [-9, -1, -5]
    assert found.token_logps is not None
    assert found.token_logps.tolist() == [-4, -5, -1, -2, -3]
    assert stored(tokens=True).logps([1]).logps.tolist() == [-6, -7, -8]
    assert stored(tokens=False).logps([0, 0]).logps.tolist() == [-1, -5, -1, -5]
    assert stored(tokens=False).logps([0]).token_logps is None


def test_they_are_computed_once_in_chunks_and_the_first_ones_stay(get):
    model = Model()
    first = get(model)
    second, elsewhere = get(None), get(None, host="another")

    assert list(chain.from_iterable(model.together)) == list(range(12))
    assert len(model.together) > 2
    assert first.tensors().keys() == {"logps", "responses", "tokens", "token_logps"}
    for again in (second, elsewhere):
        assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in first.tensors().items())
    found = first.logps([7, 3])
    assert found.logps.tolist() == pytest.approx([-7.0, -7.1, -3.0, -3.1])
    counts = [len(ids) for row in (7, 3) for ids in GROUPS[row].responses]
    assert found.token_logps.tolist() == found.logps.repeat_interleave(torch.tensor(counts)).tolist()


def test_only_the_rows_that_are_asked_for_are_computed_and_they_are_found_by_their_own_numbers(get):
    model = Model()
    found = get(model, rows=[1, 4, 9])

    assert list(chain.from_iterable(model.together)) == [1, 4, 9]
    assert found.logps([9, 1]).logps.tolist() == pytest.approx([-9.0, -9.1, -1.0, -1.1])


def test_what_was_finished_before_a_stop_is_kept_and_the_rest_is_computed_in_the_same_company(get, tmp_path):
    whole = Model()
    expected = get(whole, host="whole")
    store = LocalStore(tmp_path / "store")
    for info in list(store.list("reference_logps/")):
        store.delete(info.key)

    stopped, resumed = Model(stop_at=2), Model()
    with pytest.raises(Interrupted):
        get(stopped)
    found = get(resumed)

    assert stopped.together == whole.together[:2]
    assert resumed.together == whole.together[2:]
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expected.tensors().items())


def test_a_chunk_that_lacks_rows_is_refused_by_name(get, tmp_path):
    get(Model())
    store = LocalStore(tmp_path / "store")
    chunks = stored_chunks(store)
    bundle.delete(store, chunks[1])
    one_row = assemble([(rows, counts, logps, torch.tensor(tokens)) for rows, counts, logps, tokens in PARTS[1:]])
    store.put(
        f"{chunks[1]}.safetensors", save({name: tensor.contiguous() for name, tensor in one_row.tensors().items()})
    )

    with pytest.raises(CorruptObjectError, match=rf"{chunks[1]} does not hold the log-probs of its \d+ rows"):
        get(None, host="another")


@pytest.mark.parametrize("ending", ["safetensors", "json"])
@pytest.mark.parametrize("damage", [*DAMAGES, None])
def test_what_was_damaged_in_the_store_is_computed_again(get, tmp_path, damage, ending):
    expected = get(Model())
    store = LocalStore(tmp_path / "store")
    chunks = stored_chunks(store)
    key = next(info.key for info in store.list(chunks[1]) if info.key.endswith(ending))
    store.delete(key) if damage is None else store.put(key, damage(store.get(key)))

    model = Model()
    found = get(model, host="another")

    assert sum(map(len, model.together)) < 12
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expected.tensors().items())


def test_what_version_0_1_0_stored_is_used_as_it_is(get, tmp_path):
    expected = get(Model())
    store = LocalStore(tmp_path / "store")
    for chunk in stored_chunks(store):
        (key,) = (info.key for info in store.list(f"{chunk}/") if info.key.endswith(".safetensors"))
        store.put(f"{chunk}.safetensors", store.get(key))
        bundle.delete(store, chunk)

    found = get(None, host="another")

    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expected.tensors().items())


def stored_chunks(store):
    return sorted({info.key.rpartition("/")[0] for info in store.list("reference_logps/")})


@pytest.mark.parametrize("chunk_tokens", [1, 7, 20, 1000])
def test_chunks_hold_all_rows_once_and_about_their_tokens(chunk_tokens):
    chunks = plan_chunks(LENGTHS, chunk_tokens)

    assert [row for chunk in chunks for row in range(12)[chunk]] == list(range(12))
    assert all(LENGTHS[chunk][:-1].sum() < chunk_tokens for chunk in chunks)
