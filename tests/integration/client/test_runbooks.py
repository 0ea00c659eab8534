"""Runbooks of docs/operations.md, run as they stand there on a stack that has a job, a dataset and a token."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import madpo
from tests.integration.client.test_damaged_home import model_directory
from tests.integration.client.test_embedded import without_workers

PAGE = Path(madpo.__file__).parents[2] / "docs" / "operations.md"
RUNBOOKS = {
    name: block
    for name, text in re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    if "docker" not in block and "madpo up" in block
}
# Workers take long to start, and no runbook needs them.
_SHELL = """\
madpo() {
    if [ "$1" = up ]; then shift; set -- up --reward-replicas 0 --trainers 0 --evaluators 0 "$@"; fi
    command madpo "$@"
}
"""


def shell(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    environment |= {"HOME": str(directory), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    script = _SHELL + script.replace("/mnt/", f"{directory}/mnt/")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )


def test_there_is_one_for_each_need() -> None:
    assert {name.split()[-1] for name in RUNBOOKS} == {"lost", "full", "machine", "changed", "version", "Restore"}


@pytest.mark.promise("D9")
@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_does_what_it_says(tmp_path: Path, name: str) -> None:
    home = tmp_path / ".madpo"
    with without_workers(home) as stack, stack.client() as client:
        dataset = client.datasets.upload([{"prompt": "1", "completion": "2"}])
        job = client.jobs.train_supervised(
            model=client.models.upload(model_directory(tmp_path / "model")), dataset=dataset
        )
        client.access.create_token("ana")
    old_token = (home / "secrets" / "client_token").read_text()
    before = ["madpo backup /mnt/backups"] if "restore" in RUNBOOKS[name] else []
    found = shell("\n".join([*before, "madpo up", RUNBOOKS[name], "madpo job list --json"]), tmp_path)
    moved = tmp_path / "mnt" / "large" / "madpo"
    home = moved if moved.exists() else home
    try:
        assert found.returncode == 0, found.stdout + found.stderr
        with without_workers(home).client() as client:
            assert [each.id for each in client.jobs.list()] == [job.id]
            assert client.datasets.get(dataset.dataset_id) == dataset
            assert [token.name for token in client.access.tokens()] == ["ana"]
        changed = (home / "secrets" / "client_token").read_text() != old_token
        assert changed == ("rm ~/.madpo/secrets/client_token" in RUNBOOKS[name])
    finally:
        without_workers(home).stop()
