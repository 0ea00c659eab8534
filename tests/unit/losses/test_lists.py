"""What every method over lists keeps: shifts, padding and order change nothing."""

from dataclasses import replace

import pytest
import torch

from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import double, step


@pytest.mark.parametrize("name", ["adpo_list", "adpo_pl", "x_adpo_kde", "irpo"])
def test_a_shift_of_a_whole_list_changes_nothing(name: str) -> None:
    batch = full_batch()
    shift = double([[3.0], [-40], [0.5], [7]])
    by_policy = replace(batch, list_logps=batch.require("list_logps") + shift)
    by_reference = replace(batch, ref_list_logps=batch.require("ref_list_logps") - shift)

    for shifted in (by_policy, by_reference):
        torch.testing.assert_close(step(name, shifted).loss, step(name, batch).loss)


@pytest.mark.parametrize("name", ["adpo_list", "adpo_pl", "x_adpo_kde", "irpo", "sppo"])
def test_neither_padding_nor_the_order_of_a_list_matters(name: str) -> None:
    params = {"win_probability": "list"} if name == "sppo" else {}
    batch = full_batch()
    order = [2, 0, 3, 1]
    columns = ("list_logps", "ref_list_logps", "list_scores", "list_tokens", "list_mask")
    # Only the third list's zeros, beside its responses, are alike in score; they are padding.
    shuffled = replace(batch, **{column: batch.require(column)[:, order] for column in columns})
    padding = ~batch.require("list_mask")
    other = replace(
        batch,
        list_logps=batch.require("list_logps").detach().masked_fill(padding, -777.0).requires_grad_(),
        list_scores=batch.require("list_scores").masked_fill(padding, 1e4),
    )

    expected = step(name, batch, **params).outputs[0].per_pair
    torch.testing.assert_close(step(name, shuffled, **params).outputs[0].per_pair, expected)
    torch.testing.assert_close(step(name, other, **params).outputs[0].per_pair, expected)
