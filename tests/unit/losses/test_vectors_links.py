"""Numbers of methods on pairs with links and weights of their own."""

from typing import Any

import pytest
import torch

from madpo.losses.apo_accel import extrapolate
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.sem_dpo import semantic_weight
from tests.unit.losses.batches import VECTORS, full_batch, train_step
from tests.unit.losses.vectors import check, column, dtypes

PLAIN = [
    ("updpo_lcb_k1", "updpo", {"scheme": "lcb"}),
    ("updpo_mult_t1", "updpo", {"scheme": "scale"}),
    ("updpo_weight_t1", "updpo", {"scheme": "weight"}),
    ("semdpo_a1", "sem_dpo", {}),
    ("exo_eps1e-3", "exo_pair", {}),
    ("nca", "nca_pair", {"beta": 0.1}),
    ("bco_pair", "bco_pair", {"beta": 0.1}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("discopop_t0.05", "discopop", {"beta": 0.1}),
    ("dpo", "rso", {"beta": 0.1}),
    ("hinge", "rso", {"beta": 0.1, "link": "hinge"}),
    ("dpo", "apo_accel", {}),
]


@dtypes
@pytest.mark.parametrize(("vector", "method", "params"), PLAIN, ids=[f"{name}-{method}" for name, method, _ in PLAIN])
def test_losses_of_pairs_and_their_mean(vector: str, method: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    loss, (output,), _ = train_step(METHODS[method], parse_params(method, params), full_batch(dtype))

    check(vector, dtype, each=output.per_pair, mean=loss)


@dtypes
def test_weights_of_pairs(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    distance = batch.require("semantic_distance")

    check("semdpo_a1", dtype, d=distance, w=semantic_weight(distance, alpha=1.0))
    output = train_step(METHODS["updpo"], parse_params("updpo", {"scheme": "weight"}), batch).outputs[0]
    check("updpo_weight_t1", dtype, U=-output.weight.log())


@dtypes
def test_accelerated_optimisation_moves_on(dtype: torch.dtype) -> None:
    vector = VECTORS["apo_accel"]
    new, previous = column(vector["logits_new"], dtype), column(vector["logits_prev"], dtype)

    check("apo_accel", dtype, p_extrap=extrapolate(new, previous, alpha=vector["alpha"]).softmax(dim=0))
