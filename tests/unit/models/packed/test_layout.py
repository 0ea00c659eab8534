"""The layout of packed rows, and the index arithmetic of attention over them."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from madpo.models.logps import ResponseGroup
from madpo.models.packed.layout import Segment, SegmentTable, attention_blocks, pack, packed_length, segment_mask
from madpo.models.packed.varlen import varlen_index
from tests.unit.models.packed.architectures import make_groups

TABLE = SegmentTable((Segment(0, 3, (2, 4)), Segment(9, 5, (1,)), Segment(15, 1, (3, 3, 2))))


def test_a_pair_is_laid_out_once_with_positions_that_start_again_at_the_end_of_the_prompt():
    row = pack([ResponseGroup([10, 11, 12], ([20, 21], [30, 31, 32])), ResponseGroup([13], ([40, 41],))])

    assert row.input_ids.tolist() == [[10, 11, 12, 20, 21, 30, 31, 32, 13, 40, 41]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2]]
    assert row.segments.segments == (Segment(0, 3, (2, 3)), Segment(8, 1, (2,)))
    assert row.targets.tolist() == [20, 21, 30, 31, 32, 40, 41]
    assert row.predictors.tolist() == [2, 3, 2, 5, 6, 8, 9]
    assert row.ends.tolist() == [4, 7, 10]
    assert row.tokens.tolist() == [2, 3, 2]


def test_responses_part_where_their_tokens_do_and_each_keeps_one_of_its_own():
    row = pack(
        [ResponseGroup([10], ([20, 21, 22], [20, 21, 30, 31], [20, 21])), ResponseGroup([11], ([5, 2], [5, 2, 2]))]
    )

    assert row.segments.segments == (Segment(0, 2, (2, 3, 1)), Segment(8, 2, (1, 2)))
    assert row.input_ids.tolist() == [[10, 20, 21, 22, 21, 30, 31, 21, 11, 5, 2, 2, 2]]
    assert row.targets.tolist() == [20, 21, 22, 20, 21, 30, 31, 20, 21, 5, 2, 5, 2, 2]
    assert row.predictors.tolist() == [0, 1, 2, 0, 1, 4, 5, 0, 1, 8, 9, 8, 9, 11]
    assert row.ends.tolist() == [3, 6, 7, 10, 12]


def test_unshared_rows_repeat_the_prompt_and_keep_the_order_of_responses():
    groups = make_groups()

    shared, unshared = pack(groups), pack(groups, share=False)

    assert unshared.targets.tolist() == shared.targets.tolist()
    assert unshared.tokens.tolist() == shared.tokens.tolist()
    for share, row in ((True, shared), (False, unshared)):
        assert row.input_ids.shape[1] == sum(packed_length(group, share=share) for group in groups)
    assert all(len(segment.own) == 1 for segment in unshared.segments.segments)


def test_every_token_sees_its_prompt_and_its_own_response_and_nothing_else():
    mask = segment_mask(Segment(0, 2, (2, 1)))

    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_window_counts_positions_not_places():
    mask = segment_mask(Segment(0, 3, (2, 2)), window=3)

    assert mask[5].int().tolist() == [0, 1, 1, 0, 0, 1, 0]
    assert mask[6].int().tolist() == [0, 0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("window", [None, 4, 100])
def test_blocks_cover_every_visible_pair_of_tokens_once(window):
    length = TABLE.segments[-1].end
    expected = torch.zeros(length, length, dtype=torch.int)
    for segment in TABLE.segments:
        expected[segment.start : segment.end, segment.start : segment.end] = segment_mask(segment, window).int()

    seen = torch.zeros_like(expected)
    written = set()
    for block in attention_blocks(TABLE, window):
        queries, keys = range(length)[block.queries], range(length)[block.keys]
        assert block.merged == written.issuperset(queries)
        written |= set(queries)
        mask = torch.ones(len(queries), len(keys), dtype=torch.int) if block.mask is None else block.mask.int()
        seen[block.queries, block.keys] += mask.tril() if block.causal else mask

    assert torch.equal(seen, expected)


@pytest.mark.parametrize("window", [None, 4])
def test_sequences_of_variable_length_attention_give_what_the_masks_give(window):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, TABLE.segments[-1].end, 8, dtype=torch.float64)
    index = varlen_index(TABLE, torch.device("cpu"))
    keys, values = (tensor if index.keys is None else tensor[index.keys] for tensor in (key, value))

    parts = []
    for number in range(len(index.query_bounds) - 1):
        q, k = (slice(*bounds[number : number + 2].tolist()) for bounds in (index.query_bounds, index.key_bounds))
        rows, columns = q.stop - q.start, k.stop - k.start
        assert rows <= index.longest_query
        assert columns <= index.longest_key
        # Causal with the last query at the last key, as the kernel aligns them.
        distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)[None, :]
        mask = (distance >= 0) & (distance < (window or columns))
        parts.append(scaled_dot_product_attention(query[q], keys[k], values[k], attn_mask=mask))

    for segment in TABLE.segments:
        place = slice(segment.start, segment.end)
        mask = segment_mask(segment, window)
        expected = scaled_dot_product_attention(query[place], key[place], value[place], attn_mask=mask)
        torch.testing.assert_close(torch.cat(parts)[place], expected, rtol=0, atol=1e-14)


def test_a_row_of_single_responses_needs_no_copies_of_keys():
    index = varlen_index(SegmentTable((Segment(0, 3, (2,)), Segment(5, 1, (4,)))), torch.device("cpu"))

    assert index.keys is None
    assert index.query_bounds.tolist() == index.key_bounds.tolist() == [0, 5, 10]
