"""IRPO: weights of responses by their relevance."""

import math

import pytest
import torch

from madpo.losses.dpo import dpo_loss
from madpo.losses.irpo import irpo_terms, irpo_weight
from tests.unit.losses.steps import ALL, DELTA, double


def test_irpo_of_a_relevant_and_an_irrelevant_response_is_half_of_dpo() -> None:
    mask = torch.ones(61, 2, dtype=torch.bool)
    weight = irpo_weight(double([[1, 0]]).expand(61, 2), mask)
    terms = irpo_terms(torch.stack([DELTA, torch.zeros_like(DELTA)], dim=1), weight, mask, beta=0.3)

    torch.testing.assert_close(terms.mean(dim=1), dpo_loss(DELTA, beta=0.3) / 2)


def test_irpo_weights() -> None:
    relevance = double([[1, 0, 2, -3]])

    assert not irpo_terms(relevance, irpo_weight(torch.zeros(1, 4), ALL), ALL, beta=1.0).any()
    log_discount = irpo_weight(relevance, ALL, weighting="log_discount")[0].tolist()
    assert log_discount == pytest.approx([1 / math.log2(3), 0.5, 1, 1 / math.log2(5)])
    assert irpo_weight(relevance, ALL, weighting="gain_discount")[0].tolist() == [0.5, 0, 3, 0]
