"""No secret gets into an image: not by the context, not by what is copied, not by arguments and variables."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import madpo

ROOT = Path(madpo.__file__).parents[2]
DOCKERFILES = sorted(path for path in (ROOT / "deploy").rglob("Dockerfile*") if path.is_file())
INSTRUCTION = re.compile(r"^(COPY|ADD|ARG|ENV|RUN)\s+(.*)$", re.MULTILINE)
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY\b", re.IGNORECASE)


def is_sent(path: str) -> bool:
    """Whether the builder is sent a file: the last line of .dockerignore that matches it or a folder of it says so."""
    sent = True
    parts = path.split("/")
    prefixes = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(fnmatch(each, pattern) or fnmatch(f"/{each}", pattern.replace("**/", "*/")) for each in prefixes):
                sent = line.startswith("!")
    return sent


@pytest.mark.parametrize(
    "path", ["src/madpo/__init__.py", "client/madpo_client/secrets_directory.py", "pyproject.toml"]
)
def test_code_is_sent(path: str) -> None:
    assert is_sent(path)


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "secrets/client_token",
        "src/.env",
        "client/.env.local",
        "services/gateway/secrets/redis_password",
        "src/tls/ca.key",
        "examples/client.pem",
        "ana.token",
        "client/ana.token",
        ".git/config",
        "tests/conftest.py",
    ],
)
def test_what_is_no_code_is_not_sent(path: str) -> None:
    assert not is_sent(path)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    return [(match[1], match[2]) for match in INSTRUCTION.finditer(text)]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_only_named_parts_of_the_context_are_copied(dockerfile: Path) -> None:
    copied = [rest for name, rest in instructions(dockerfile) if name in ("COPY", "ADD") and "--from=" not in rest]
    sources = [source for rest in copied for source in rest.split()[:-1] if not source.startswith("--")]
    assert sources
    assert [source for source in sources if source in (".", "./", "/", "*") or not (ROOT / source).exists()] == []
    assert [name for name, _ in instructions(dockerfile) if name == "ADD"] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_no_argument_or_variable_is_a_secret(dockerfile: Path) -> None:
    named = [rest for name, rest in instructions(dockerfile) if name in ("ARG", "ENV")]
    assert named
    assert [rest for rest in named if SECRET.search(rest)] == []
