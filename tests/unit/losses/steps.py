"""Steps of methods by their names, and what two of them have in common."""

from typing import Any

import torch
from torch import Tensor

from madpo.losses.method import LossBatch
from madpo.losses.registry import METHODS, parse_params
from tests.unit.losses.batches import Step, full_batch, gradients, train_step

SPLIT = [[3, 0], [2], [1]]
DELTA = torch.linspace(-30, 30, 61, dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


def step(name: str, batch: LossBatch | None = None, **params: Any) -> Step:
    return train_step(METHODS[name], parse_params(name, params), batch or full_batch())


def trained(name: str, batch: LossBatch, **how: Any) -> tuple[Step, dict[str, Tensor]]:
    params = {key: how.pop(key) for key in list(how) if key not in ("split", "state", "seed", "training")}
    result = train_step(METHODS[name], parse_params(name, params), batch, **how)
    result.loss.backward()
    return result, gradients(batch)


def assert_equal_training(one: tuple[Step, dict[str, Tensor]], other: tuple[Step, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0].loss, other[0].loss, rtol=1e-12, atol=1e-12)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-10, atol=1e-13)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
