"""Marks these tests, and keeps which vectors they compared; `tests/conftest.py` says how many."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import VECTORS_CHECKED
from tests.unit.losses import vectors

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.methods)


@pytest.fixture(autouse=True)
def checked_vectors(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Goes with the test's report, since the process that sums up may be another."""
    before = set(vectors.checked)
    yield
    record_property(VECTORS_CHECKED, sorted(vectors.checked - before))
