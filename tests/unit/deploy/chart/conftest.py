"""Documents of each set of values."""

import pytest

from tests.unit.deploy.chart.rendering import VALUES, Document, rendered


@pytest.fixture(params=VALUES)
def documents(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    return rendered(request.param)
