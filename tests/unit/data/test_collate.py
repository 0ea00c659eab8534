import torch

from madpo.data.collate import collate_pairs, collate_responses
from madpo.data.tokenize import Encoded

A = Encoded([1, 6], [8, 9, 2])
B = Encoded([1, 6], [10, 2])
C = Encoded([1], [7, 2])
D = Encoded([1], [2])


def test_pairs_become_chosen_rows_then_rejected_rows_padded_right() -> None:
    batch = collate_pairs([(A, B), (C, D)], pad_id=0)

    assert batch.size == 2
    assert batch.input_ids.tolist() == [[1, 6, 8, 9, 2], [1, 7, 2, 0, 0], [1, 6, 10, 2, 0], [1, 2, 0, 0, 0]]
    assert batch.attention_mask.sum(-1).tolist() == [5, 3, 4, 2]
    assert [row.nonzero().flatten().tolist() for row in batch.response_mask] == [[2, 3, 4], [1, 2], [2, 3], [1]]


def test_masks_do_not_depend_on_the_padding_id() -> None:
    by_pad, by_eos = (collate_responses([A, D], pad_id=pad) for pad in (0, 2))

    assert torch.equal(by_pad.attention_mask, by_eos.attention_mask)
    assert torch.equal(by_pad.response_mask, by_eos.response_mask)
    assert by_pad.size == 2
    assert by_pad.to("meta").input_ids.is_meta
