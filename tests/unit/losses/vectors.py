"""Comparison with the numbers of tests/vectors/losses.json, and a count of those compared."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.losses.batches import TOLERANCE, VECTORS

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

checked: set[tuple[str, str]] = set()


def check(name: str, dtype: torch.dtype, **actual: Any) -> None:
    """Compare the entries of one vector with what was computed, at the tolerance of the dtype.

    Keywords are the vector's keys, `value` where it is a single number; tensors must have the dtype.
    """
    for key, value in actual.items():
        close(value, _expected(name, key), dtype, what=f"{name}.{key}")
        checked.add((name, key))


def column(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def shared(name: str, dtype: torch.dtype) -> Tensor:
    """A column of the batch that the vectors share."""
    return column(VECTORS["batch"][name], dtype)


def close(actual: Any, expected: Any, dtype: torch.dtype, *, what: str = "value") -> None:
    """Equal at the dtype's tolerance, and of that dtype."""
    assert isinstance(actual, Tensor), what
    assert actual.dtype == dtype, what
    torch.testing.assert_close(
        actual.detach(),
        torch.tensor(expected, dtype=dtype),
        rtol=TOLERANCE[dtype],
        atol=TOLERANCE[dtype],
        msg=lambda text: f"{what}: {text}",
    )


def report(keys: Collection[tuple[str, str]]) -> str:
    """How many vectors, and numbers in them, were compared, given their names and keys; and which were not."""
    numbers = sum(_size(_expected(name, key)) for name, key in keys if name != "batch")
    names = {name for name, _ in keys} - {"batch"}
    missing = sorted(VECTORS.keys() - names - {"batch"})
    text = f"{len(names)} vectors checked ({numbers} numbers)"
    return f"{text}; not checked: {', '.join(missing)}" if missing else text


def _expected(name: str, key: str) -> Any:
    vector = VECTORS[name]
    return vector[key] if isinstance(vector, dict) else vector


def _size(value: Any) -> int:
    return sum(map(_size, value)) if isinstance(value, list) else 1
