"""The gateway as a process: what keeps it from starting, and what it does without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from madpo.config import load_settings
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import TOKEN


def run_gateway(tmp_path: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "STORE_URL": f"file://{tmp_path}/store",
        "REDIS_URL": "redis://:hush-hush@127.0.0.1:9/0",
        "TOKEN": TOKEN,
        "SCRATCH": str(tmp_path / "scratch"),
    } | changed
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    return subprocess.run(
        [sys.executable, "-m", "madpo_gateway"],
        env=inherited | {f"MADPO_GATEWAY_{name}": value for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.promise("H4")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "redis://127.0.0.1:9/0 does not answer (see redis_url)"),
        (
            {
                "STORE_URL": "s3://bucket",
                "S3_ENDPOINT": "http://127.0.0.1:9",
                "S3_ACCESS_KEY": "key",
                "S3_SECRET_KEY": "hush-hush",
            },
            "http://127.0.0.1:9",
        ),
        ({"TOKEN": "hush-hush"}, "MADPO_GATEWAY_TOKEN"),
        ({"HOST": "0.0.0.0"}, "MADPO_GATEWAY_ALLOW_PLAINTEXT=true"),
    ],
)
def test_a_gateway_that_cannot_start_says_why_in_one_line_without_secrets(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    ended = run_gateway(tmp_path, **changed)

    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("gateway: ")
    assert said in last
    assert "Traceback" not in ended.stderr
    assert "hush-hush" not in ended.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(settings: GatewaySettings, host: str) -> None:
    given = settings.model_dump() | {"host": host}

    assert load_settings(GatewaySettings, **given).host == host


def test_the_gateway_needs_no_torch() -> None:
    program = "import sys, madpo_gateway.service; print(*sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.strip() == ""
