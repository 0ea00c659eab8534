"""What there is to do by arithmetic, and what torch counts that our step does."""

import pytest

from bench.lengths import SHAPES, PairLengths, draw_lengths, fill
from bench.training import flops, work
from bench.training.ours import DEFAULT
from madpo.models.packed.capability import Layout
from madpo_trainer.micro_batches import MicroBatches

PAIRS = [PairLengths(4, 2, 3), PairLengths(1, 1, 6), PairLengths(2, 5, 1), PairLengths(3, 3, 3)]


@pytest.mark.parametrize(
    ("layout", "tokens"),
    [
        ("shared", 9 + 8 + 8 + 9),
        ("padding_free", 13 + 9 + 10 + 12),
        ("padded", 2 * 2 * 7 + 2 * 2 * 7),
        ("sorted", 2 * 2 * 7 + 2 * 2 * 7),
    ],
)
def test_tokens_of_a_layout_are_those_counted_by_hand(layout, tokens):
    assert work.layout_tokens(PAIRS, layout, batch=4, micro_batch=2) == tokens


def test_sorting_pays_as_far_as_a_batch_goes():
    pairs = [PairLengths(1, 1, 1), PairLengths(9, 1, 1)] * 2

    assert work.layout_tokens(pairs, "sorted", batch=2, micro_batch=2) == 2 * 4 * 10
    assert work.layout_tokens(pairs, "sorted", batch=4, micro_batch=2) == 2 * 2 * 2 + 2 * 2 * 10


def test_lengths_have_their_medians_and_pairs_differ_from_their_first_token_on():
    lengths = draw_lengths(SHAPES["384/128"], 2001, seed=0)
    pairs = fill(lengths[:50], 40, seed=0)

    assert abs(sorted(pair.prompt for pair in lengths)[1000] - 384) < 40
    assert abs(sorted(pair.chosen for pair in lengths)[1000] - 128) < 8
    assert [tuple(map(len, pair)) for pair in pairs] == lengths[:50]
    assert all(pair.chosen[0] != pair.rejected[0] for pair in pairs)


@pytest.fixture(scope="module")
def task():
    return flops.step_task("tiny", batch=8, micro_batch=4)


def test_a_step_does_no_matrix_product_more_than_there_must_be(task):
    ours, least = flops.our_flops(task, DEFAULT), flops.least(task)

    print(
        f"products {ours.products / least.products:.3f} of the least, attention {ours.attention / least.attention:.3f}"
    )
    assert 0 < ours.products <= 1.05 * least.products
    # Counted query by key: of a causal block, the half that is skipped too.
    assert ours.attention <= 2 * least.attention


def test_what_is_counted_is_that_padded_rows_do_more(task):
    plain, least = flops.our_flops(task, "plain"), flops.least(task)
    # Each row of a pass, two for a pair, is as long as the longest of the pass.
    longest = [pair.longest for pair in task.lengths()]
    passes = MicroBatches(Layout("padded"), budget_tokens=task.row_tokens).split(
        range(8), [2 * each for each in longest]
    )
    rows = [(2 * len(each), max(longest[pair] for pair in each)) for each in passes]
    padded = sum(count * length for count, length in rows)

    # Full logits at all positions but the last, kept for the backward pass.
    blocks, head = task.model.block_parameters, task.model.head_parameters
    assert plain.products == pytest.approx(2 * 3 * padded * (blocks + head), rel=0.01)
    # Two products of queries with keys or values forward, five backward.
    squares = sum(count * length * length for count, length in rows)
    assert plain.attention == 2 * 7 * task.model.layers * task.model.hidden * squares > 3 * least.attention
