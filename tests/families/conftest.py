"""One site, one older transformers and one set of models for all tests of a process; and the table they make."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.conftest import FAMILY_CELL
from tests.families import plain as newer
from tests.families.comparison import Plain
from tests.families.flows import Flows
from tests.families.older import OlderTransformers
from tests.families.site import running_site
from tests.families.table import column_of


@pytest.fixture(scope="session")
def flows(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Flows]:
    """Everything that is done with families."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("families")
    with running_site(home, redis_url=redis_url, namespace=home.name) as site:
        yield Flows(site, home)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def older() -> Iterator[OlderTransformers]:
    """Transformers 4."""
    with OlderTransformers() as older:
        yield older


@pytest.fixture(params=["transformers 5", "transformers 4.57"])
def plain(request: pytest.FixtureRequest) -> Plain:
    """Transformers without madpo: ours, and the last of the version before."""
    if request.param == "transformers 5":
        return lambda call, *arguments, **options: newer.CALLS[call](*arguments, **options)
    older: Plain = request.getfixturevalue("older")
    return older


@pytest.fixture(autouse=True)
def _cell(request: pytest.FixtureRequest, record_property: Any) -> None:
    """Enter the test into the table."""
    for marker in request.node.iter_markers("cell"):
        parameters = request.node.callspec.params
        record_property(FAMILY_CELL, [parameters["family"].name, column_of(marker.args, parameters.get("flow"))])
