"""Where a security rule of the linter (bandit's, ruff's S) is passed over, the line says why."""

import re
from pathlib import Path

import madpo

ROOT = Path(madpo.__file__).parents[2]
SHIPPED = ("src", "client", "services", "examples", "scripts")
EXCEPTION = re.compile(r"# noqa: [A-Z0-9, ]*S\d{3}(.*)$", re.MULTILINE)


def unexplained(text: str) -> list[str]:
    return [match[0] for match in EXCEPTION.finditer(text) if not re.fullmatch(r" - \w.{5,}", match[1])]


def test_an_exception_without_a_reason_is_found() -> None:
    assert unexplained("x = random()  # noqa: S311\n") == ["# noqa: S311"]
    assert unexplained("x = random()  # noqa: S311 - jitter, no secret\n") == []


def test_every_exception_says_why() -> None:
    paths = [path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py") if "v1" not in path.parts]
    found = [(path.name, each) for path in paths for each in unexplained(path.read_text())]
    assert len(paths) > 300
    assert found == []
