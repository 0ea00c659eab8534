"""Stacks that are started again after damage: they say what was wrong, what they did, and go on."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from madpo.types import JobState
from madpo_client.embedded import EmbeddedStack
from tests.integration.client.test_embedded import madpo, without_workers
from tests.integration.gateway.messages import safetensors

ROWS = [{"prompt": "1", "completion": "2"}]


def log_of_queue(home: Path) -> Path:
    return next((home / "redis" / "appendonlydir").glob("*.incr.aof"))


def cut(home: Path) -> None:
    os.truncate(log_of_queue(home), log_of_queue(home).stat().st_size - 3)


def garble(home: Path) -> None:
    path = log_of_queue(home)
    content = bytearray(path.read_bytes())
    content[content.index(b"\r\n*", len(content) // 2) + 2] = ord("x")  # where a command begins
    path.write_bytes(content)


def lose_base(home: Path) -> None:
    next((home / "redis" / "appendonlydir").glob("*.base.*")).unlink()


def spoil_manifest(home: Path) -> None:
    next((home / "redis" / "appendonlydir").glob("*.manifest")).write_text("nonsense\n")


def spoil_connection(home: Path) -> None:
    (home / "connection.json").write_text("{")


def model_directory(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(safetensors(1))
    return directory


@pytest.fixture(scope="module")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home that was stopped, and a job in it that waits for a worker."""
    home = tmp_path_factory.mktemp("stack") / "home"
    with without_workers(home) as stack, stack.client() as client:
        dataset = client.datasets.upload(ROWS)
        model = client.models.upload(model_directory(home.parent / "model"))
        return home, client.jobs.train_supervised(model=model, dataset=dataset).id


@pytest.mark.promise("D9")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "the end of the queue's file was missing"),
        (garble, "Bad file format"),
        (lose_base, "Unable to obtain the AOF file"),
        (spoil_manifest, "AOF MANIFEST FILE ERROR"),
        (spoil_connection, "connection.json is no connection file of this version; delete it: done"),
    ],
)
def test_a_damaged_home_is_mended_and_said(
    used_home: tuple[Path, str], damage: Callable[[Path], None], said: str
) -> None:
    home, job_id = used_home
    damage(home)
    with without_workers(home) as stack, stack.client() as client:
        assert len(stack.notices) == 1
        assert said in stack.notices[0]
        assert client.jobs.get(job_id).state is JobState.PENDING
    with without_workers(home) as stack:
        assert stack.notices == []


def test_a_lost_store_is_said_and_made(used_home: tuple[Path, str]) -> None:
    home, job_id = used_home
    (home / "store").rename(home / "kept")
    with without_workers(home) as stack, stack.client() as client:
        assert f"{home / 'store'} is missing" in stack.notices[0]
        assert list(client.datasets.list()) == []
    (home / "store").rename(home / "empty")
    (home / "kept").rename(home / "store")
    with without_workers(home) as stack, stack.client() as client:
        assert len(list(client.datasets.list())) == 1
        assert client.jobs.get(job_id).state is JobState.PENDING


def test_the_command_says_what_it_found(used_home: tuple[Path, str]) -> None:
    home, _ = used_home
    home.chmod(0o755)
    garble(home)
    try:
        up = madpo(home, "up", "--reward-replicas", "0", "--trainers", "0", "--evaluators", "0")
    finally:
        EmbeddedStack(home).stop()
    assert up.returncode == 0, up.stderr
    assert f"note: {home} was open to other users (mode 0755): closed" in up.stderr
    assert "note: the queue's files were damaged" in up.stderr


def test_nothing_of_a_stack_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with without_workers(tmp_path / "home") as stack, stack.client() as client:
            client.datasets.upload(ROWS)
    finally:
        os.umask(before)
    files = list((tmp_path / "home").rglob("*"))
    assert {"supervisor.log", "gateway.log", "redis.log", "valkey.conf"} <= {path.name for path in files}
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_list_names_what_is_damaged_and_shows_the_others(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with without_workers(home) as stack, stack.client() as client:
        kept = client.datasets.upload(ROWS)
        ids = [client.datasets.upload([{"prompt": "3", "completion": "4"}]).dataset_id]
        ids.append(client.models.upload(model_directory(tmp_path / "model")).model_id)
        for thing_id in ids:
            manifest = home / "store" / f"{thing_id.partition('-')[0]}s" / thing_id / "manifest.json"
            manifest.write_bytes(manifest.read_bytes()[:-1])

            listed = madpo(home, thing_id.partition("-")[0], "list")

            assert listed.returncode == 0
            assert (kept.dataset_id in listed.stdout) == thing_id.startswith("dataset")
            assert f"{thing_id} cannot be read and is left out" in listed.stderr
            assert "`madpo store check`" in listed.stderr
            assert madpo(home, thing_id.partition("-")[0], "delete", thing_id).stdout == f"deleted {thing_id}\n"
        assert client.models.list() == []
        assert [dataset.dataset_id for dataset in client.datasets.list()] == [kept.dataset_id]
