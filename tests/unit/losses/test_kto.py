"""KTO on pairs: one point of reference, bounded terms."""

import pytest
import torch

from madpo.losses.kto import kto_reference_point, kto_terms
from madpo.losses.registry import METHODS, parse_params
from tests.unit.losses.batches import full_batch, gradients, train_step
from tests.unit.losses.steps import DELTA, SPLIT, double, step


def test_kto_has_one_reference_point_for_all_micro_batches() -> None:
    config = parse_params("kto", {"desirable_weight": 1.2})
    whole, parts = full_batch(), full_batch()
    one, other = train_step(METHODS["kto"], config, whole), train_step(METHODS["kto"], config, parts, split=SPLIT)
    one.loss.backward()
    other.loss.backward()

    torch.testing.assert_close(other.loss, one.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(parts)["policy_chosen_logps"], gradients(whole)["policy_chosen_logps"])
    points = torch.cat([part.metrics["kto/reference_point"] for part in other.outputs])
    assert points.tolist() == pytest.approx([0.15] * 4)


def test_kto_terms_are_bounded_and_its_reference_point_not_negative() -> None:
    point = kto_reference_point(double([-3.0, 1.0]))
    assert float(point) == 0
    for terms in kto_terms(DELTA, DELTA, double(0.7), beta=0.5):
        assert bool(((terms > 0) & (terms < 1)).all())
    desirable, undesirable = kto_terms(DELTA, -DELTA, double(0.0), beta=0.5)
    torch.testing.assert_close(desirable, undesirable)


def test_kto_weights_each_kind() -> None:
    parts = [
        step("kto", desirable_weight=d, undesirable_weight=u).outputs[0].per_pair for d, u in ((1, 1), (3, 1), (1, 3))
    ]

    torch.testing.assert_close(parts[1] + parts[2], 4 * parts[0])
    assert not torch.equal(parts[1], parts[2])
