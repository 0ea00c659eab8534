"""AOT: pairs by rank."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from madpo.losses.aot import aot_terms, same_rank
from tests.unit.losses.batches import full_batch, gradients, take
from tests.unit.losses.steps import SPLIT, double, step, trained


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_of_one_pair_is_dpo(name: str) -> None:
    for row in range(4):
        one, other = take(full_batch(), [row]), take(full_batch(), [row])
        torch.testing.assert_close(step(name, one, beta=0.1).loss, step("dpo", other).loss)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("split", [None, SPLIT])
def test_aot_is_the_sorted_batch(name: str, split: Any) -> None:
    """Value and gradient of the published form, which sorts with gradient over the whole batch."""
    batch, sorted_batch = full_batch(), full_batch()
    result, found = trained(name, batch, beta=0.3, split=split)
    if name == "aot":
        policy = sorted_batch.policy_chosen_logps - sorted_batch.policy_rejected_logps
        reference = sorted_batch.require("ref_chosen_logps") - sorted_batch.require("ref_rejected_logps")
        terms = aot_terms(policy, reference, beta=0.3)
    else:
        terms = aot_terms(sorted_batch.chosen_log_ratio, sorted_batch.rejected_log_ratio, beta=0.3)
    terms.mean().backward()

    torch.testing.assert_close(result.loss, terms.mean(), rtol=1e-12, atol=0)
    for side, gradient in gradients(sorted_batch).items():
        torch.testing.assert_close(found[side], gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [[1, 0, 3, 2], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_aot_does_not_see_the_order_of_the_batch_nor_unpaired_aot_the_pairing(order: list[int]) -> None:
    batch = full_batch()
    for name in ("aot", "aot_unpaired"):
        torch.testing.assert_close(step(name, take(batch, order)).loss, step(name, batch).loss)
    rejected = take(batch, order)
    crossed = replace(
        batch, policy_rejected_logps=rejected.policy_rejected_logps, ref_rejected_logps=rejected.ref_rejected_logps
    )
    torch.testing.assert_close(step("aot_unpaired", crossed).loss, step("aot_unpaired", batch).loss)


def test_partners_have_the_same_rank() -> None:
    assert same_rank(double([3, -1, 7, 2]), double([10, 40, 20, 30])).tolist() == [30, 10, 40, 20]
    assert same_rank(double([5, 5, 0]), double([1, 2, 3])).tolist() == [2, 3, 1]
