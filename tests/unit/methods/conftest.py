"""Marks these tests, and says how many vectors they compared."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.methods import vectors

HERE = Path(__file__).parent
PROPERTY = "vectors checked"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.methods)


@pytest.fixture(autouse=True)
def checked_vectors(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Goes with the test's report, since the process that sums up may be another."""
    before = set(vectors.checked)
    yield
    record_property(PROPERTY, sorted(vectors.checked - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    recorded = [each for report in reports for each in getattr(report, "user_properties", ())]
    keys = {tuple(key) for name, found in recorded if name == PROPERTY for key in found}
    if keys:
        terminalreporter.write_line(vectors.report(keys))
