"""The images hold what their services import."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]


SERVICES = ("gateway", "reward", "trainer", "evaluator")


def required(service: str) -> set[str]:
    """Names of the distributions that an image is built with for a service, and of those that they need."""
    lines = re.findall(r"^RUN ./install.sh (.*)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE)
    (extras,) = (line.split() for line in lines if service in line.split())
    named = [extra for extra in extras if extra == service or extra not in SERVICES]
    command = [sys.executable, ROOT / "deploy/docker/requirements.py", ROOT / "pyproject.toml", *named]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return closure(listed)


def closure(lines: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(lines)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in found:
            found.add(name)
            waiting += requires(name) or []
    return found


def imported(package: Path) -> set[str]:
    """Names of the modules that a package imports anywhere, also within functions."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_whatever_its_service_imports(service: str) -> None:
    distributions = packages_distributions()
    outside = {
        name: {canonicalize_name(each) for each in distributions.get(name, [])}
        for name in imported(ROOT / f"services/{service}/madpo_{service}")
        if name not in sys.stdlib_module_names and not name.startswith("madpo")
    }
    there = required(service)

    assert outside
    assert {name for name, named in outside.items() if not named & there} == set()
