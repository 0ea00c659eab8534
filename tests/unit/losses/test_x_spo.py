"""Stable preference optimisation: a bound on the likelihood, over the whole batch."""

from dataclasses import replace

import pytest
import torch

from madpo.losses.method import LossBatch
from madpo.losses.registry import METHODS, parse_params
from tests.unit.losses.batches import full_batch, train_step
from tests.unit.losses.steps import SPLIT, assert_equal_training, step, trained


def bounded_batch(by: float) -> LossBatch:
    """A batch whose chosen responses have lost `by` nats per token to the reference."""
    batch = full_batch()
    tokens = batch.require("chosen_tokens").double()
    return replace(batch, ref_chosen_logps=batch.policy_chosen_logps.detach() + by * tokens)


@pytest.mark.parametrize("by", [-0.3, 0.05, 0.3])
def test_the_likelihood_is_bounded_over_the_whole_batch(by: float) -> None:
    whole, parts = bounded_batch(by), bounded_batch(by)
    params = {"penalty": 2.0, "slack": 0.1}
    one, other = trained("x_spo", whole, **params), trained("x_spo", parts, split=SPLIT, **params)
    base = trained("dpo", bounded_batch(by))
    violation = max(0.0, by - 0.1)

    assert_equal_training(one, other)
    assert (one[0].loss - base[0].loss).item() == pytest.approx(2 * violation, abs=1e-12)
    if violation == 0:
        assert_equal_training(one, base)
    else:
        extra = one[1]["policy_chosen_logps"] - base[1]["policy_chosen_logps"]
        torch.testing.assert_close(extra, torch.full_like(extra, -2 / 57))


def test_the_likelihood_may_be_bounded_by_the_best_so_far() -> None:
    method, config = METHODS["x_spo"], parse_params("x_spo", {"bound": "best"})
    better = train_step(method, config, bounded_batch(-0.3))
    batch = full_batch()
    lost = replace(batch, policy_chosen_logps=(batch.policy_chosen_logps.detach() - 5.7).requires_grad_())
    worse = train_step(method, config, lost, state=better.state, split=SPLIT)

    nll = 71.75 / 57
    assert better.outputs[0].aux["likelihood"].item() == 0
    assert better.state["best_nll"].item() == worse.state["best_nll"].item() == pytest.approx(nll)
    assert sum(part.aux["likelihood"].item() for part in worse.outputs) == pytest.approx(4 * 5.7 / 57)
    assert train_step(method, config, bounded_batch(0.3)).state["best_nll"].item() == pytest.approx(nll - 0.3)


def test_the_positive_term_never_lowers_the_loss() -> None:
    with_term, base = step("x_spo", positive_weight=3).outputs[0].per_pair, step("dpo").outputs[0].per_pair

    assert bool((with_term >= base).all())
    assert (with_term > base).tolist() == [False, True, False, True]
