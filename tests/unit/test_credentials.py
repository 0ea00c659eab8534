"""No file of the repository holds a credential that somebody could run with."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NAME = r"(?:password|passwd|requirepass|secret(?:_?key)?|access_?key(?:_?id)?|token|api_?key|root_user)"
LITERAL = r"[A-Za-z0-9+/_=!#%.-]{4,}"
QUOTED = rf"""(?:"{LITERAL}"|'{LITERAL}')"""
CREDENTIALS = {
    "a well-known default": re.compile(r"minioadmin|change-?me\b|admin:admin|hunter2", re.IGNORECASE),
    "a private key": re.compile(r"-----BEGIN (?:\w+ )?PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"://[\w.-]*:[\w!%+-]+@"),
    "a quoted value": re.compile(rf"""{NAME}["']?\s*[:=]\s*{QUOTED}""", re.IGNORECASE),
    "an option of a command": re.compile(rf"--(?:{NAME})[= ]{LITERAL}(?![\w./-])", re.IGNORECASE),
}
BARE_VALUE = re.compile(
    rf"""(?<!-){NAME}(?:\s*[:=]\s*|(?<=requirepass)[ \t]+)(?!(?:true|false|null)\b){LITERAL}["'\]]*\s*$""",
    re.IGNORECASE | re.MULTILINE,
)
"""Of files where values stand without quotes."""
UNQUOTED = (".yml", ".yaml", ".conf", ".env", ".sh", ".tpl", ".md", "Dockerfile")


def findings(name: str, text: str) -> list[str]:
    """What looks like a credential: kind and place."""
    patterns = CREDENTIALS | ({"a bare value": BARE_VALUE} if name.endswith(UNQUOTED) else {})
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {kind}: {match[0].strip()}"
        for kind, pattern in patterns.items()
        for match in pattern.finditer(text)
    ]


def committed_files() -> list[Path]:
    """Files git knows of or would add; tests have made-up credentials for servers of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [Path(name) for name in listed.split("\0") if name and not name.startswith("tests/")]
    return [path for path in paths if (ROOT / path).is_file()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docker-compose.yml", "      MINIO_ROOT_USER: minioadmin\n"),
        ("docker-compose.yml", "      REDIS_PASSWORD: s3cretword\n"),
        ("docker-compose.yml", 'environment: ["GF_SECURITY_ADMIN_PASSWORD=opensesame"]\n'),
        ("values.yaml", "redis:\n  password: opensesame\n"),
        ("redis.conf", "port 6379\nrequirepass opensesame\n"),
        ("redis.sh", "redis-server --requirepass opensesame\n"),
        ("settings.py", 'token: str = "x"\ns3_secret_key = "opensesame"\n'),
        ("README.md", "    export MADPO_GATEWAY_TOKEN=0123456789abcdef\n"),
        ("plan.py", 'url = "redis://:opensesame@127.0.0.1:6379/0"\n'),
        ("ca.key", "-----BEGIN EC PRIVATE KEY-----\n"),
    ],
)
def test_a_planted_credential_is_found(name: str, text: str) -> None:
    assert findings(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docker-compose.yml", "  redis_password: {file: ${MADPO_SECRETS_DIR}/redis_password}\n"),
        ("pod.yaml", "automountServiceAccountToken: false\n"),
        ("docker-compose.yml", "      - {source: client_token, target: madpo_gateway_token}\n"),
        ("plan.py", 'f"redis://:{password}@{HOST}:{port}/0"'),
        ("client.py", "Client(server, token=token)"),
        ("README.md", "madpo --server gpu-host:50050 --token-file client_token job list\n"),
    ],
)
def test_the_name_of_a_credential_is_none(name: str, text: str) -> None:
    assert not findings(name, text)


def test_no_committed_file_holds_a_credential() -> None:
    paths = committed_files()
    found = [finding for path in paths for finding in findings(path.name, (ROOT / path).read_text(errors="ignore"))]

    assert len(paths) > 100
    assert found == []
