"""Stored reference log-probs: what was computed in any order is found by row."""

import torch

from madpo.storage.local import LocalStore
from madpo_trainer.ranks import OneRank
from madpo_trainer.stored_reference import ReferenceLogps, StoredLogps, assemble, load_or_compute

# Row 0 has two responses of 1 and 2 tokens, row 1 three of 1 token, row 2 one of 2.
CHUNKS = [
    ([2, 0], [1, 2], ReferenceLogps(torch.tensor([-9.0, -1.0, -5.0]), torch.tensor([-4.0, -5, -1, -2, -3])), [2, 1, 2]),
    ([1], [3], ReferenceLogps(torch.tensor([-6.0, -7.0, -8.0]), torch.tensor([-6.0, -7, -8])), [1, 1, 1]),
]


def stored(*, tokens: bool) -> StoredLogps:
    return assemble(
        [
            (rows, counts, logps if tokens else ReferenceLogps(logps.logps, None), torch.tensor(lengths))
            for rows, counts, logps, lengths in CHUNKS
        ]
    )


def test_values_come_back_in_the_order_of_the_rows_that_are_asked_for():
    found = stored(tokens=True).logps([2, 0])

    assert found.logps.tolist() == [-9, -1, -5]
    assert found.token_logps is not None
    assert found.token_logps.tolist() == [-4, -5, -1, -2, -3]
    assert stored(tokens=True).logps([1]).logps.tolist() == [-6, -7, -8]
    assert stored(tokens=False).logps([0, 0]).logps.tolist() == [-1, -5, -1, -5]
    assert stored(tokens=False).logps([0]).token_logps is None


def test_they_are_computed_once_and_the_first_ones_stay(tmp_path):
    store, calls = LocalStore(tmp_path), []

    def compute():
        calls.append(1)
        return stored(tokens=True)

    def get():
        return load_or_compute(store, "0" * 32, rows=3, compute=compute, ranks=OneRank())

    first, second = get(), get()

    assert len(calls) == 1
    assert first.tensors().keys() == {"logps", "responses", "tokens", "token_logps"}
    assert all(torch.equal(second.tensors()[name], tensor) for name, tensor in first.tensors().items())
