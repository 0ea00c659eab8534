"""Methods that are others at some of their parameters."""

from typing import Any

import pytest

from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import assert_equal_training, trained


@pytest.mark.parametrize(
    ("name", "params", "base", "base_params"),
    [
        ("beta_dpo", {"alpha": 0, "filter_ratio": 0}, "dpo", {}),
        ("alpha_dpo", {"alpha": 0}, "simpo", {"beta": 2.5, "gamma_beta_ratio": 0.6}),
        ("adpo", {"tau": 10, "beta_r": 1}, "rm_soft", {}),
        ("x_spo", {"penalty": 0}, "dpo", {}),
        ("updpo", {"k": 0}, "dpo", {}),
        ("rso", {"beta": 0.1}, "dpo", {}),
        ("rso", {"beta": 0.1, "link": "hinge"}, "hinge", {}),
        ("apo_accel", {}, "dpo", {}),
        ("sem_dpo", {"alpha": 0}, "dpo", {}),
    ],
)
def test_special_cases(name: str, params: dict[str, Any], base: str, base_params: dict[str, Any]) -> None:
    assert_equal_training(trained(name, full_batch(), **params), trained(base, full_batch(), **base_params))
