"""`madpo backup` and `madpo restore` where a service runs, and what they refuse."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from madpo.config import StoreSettings
from madpo.ports import JobRequest
from madpo.queue.queue import connect
from madpo.storage import keys
from madpo.storage.open import open_store
from madpo.types import JobKind
from tests.integration.client.test_embedded import madpo, without_workers


def gateway(store: StoreSettings, scratch: Path, redis_url: str, namespace: str) -> dict[str, str]:
    """The environment of a gateway's container."""
    assert store.s3_access_key is not None
    assert store.s3_secret_key is not None
    settings = {
        "STORE_URL": store.store_url,
        "S3_ENDPOINT": store.s3_endpoint or "",
        "S3_ACCESS_KEY": store.s3_access_key.get_secret_value(),
        "S3_SECRET_KEY": store.s3_secret_key.get_secret_value(),
        "SCRATCH": str(scratch),
        "REDIS_URL": redis_url,
        "REDIS_NAMESPACE": namespace,
        "TOKEN": "t" * 32,
    }
    return {f"MADPO_GATEWAY_{name}": value for name, value in settings.items()}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "madpo_client.cli", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


async def test_a_service_and_its_s3_server(s3_settings: StoreSettings, redis_url: str, tmp_path: Path) -> None:
    root = f"{s3_settings.store_url}/{uuid4().hex}"
    ours = s3_settings.model_copy(update={"store_url": f"{root}/ours"})
    theirs = s3_settings.model_copy(update={"store_url": f"{root}/theirs"})
    open_store(ours).put(keys.pin("model-1"), b"{}")
    namespace = f"test-{uuid4().hex}"
    environment = gateway(ours, tmp_path / "scratch", redis_url, namespace)
    done = run(environment, "backup", f"{root}/backups", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["objects"] == 1

    queue = connect(redis_url, namespace=namespace)
    await queue.create(JobRequest("request", JobKind.SUPERVISED_TRAINING, {}))
    await queue.close()
    environment |= {"MADPO_GATEWAY_STORE_URL": theirs.store_url}
    done = run(environment, "restore", f"{root}/backups")
    assert (done.returncode, "the queue has jobs" in done.stderr) == (1, True)
    environment |= {"MADPO_GATEWAY_REDIS_NAMESPACE": f"test-{uuid4().hex}"}
    done = run(environment, "restore", f"{root}/backups")
    assert done.returncode == 0, done.stderr
    assert open_store(theirs).get(keys.pin("model-1")) == b"{}"


def test_what_is_refused(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "place"
    refused = {
        "is no home of a stack": madpo(home, "backup", str(place)),
        "there is no backup here": madpo(home, "restore", str(place)),
    }
    assert not home.exists()
    with without_workers(home) as stack, stack.client() as client:
        client.datasets.upload([{"prompt": "the film was"}])
        done = madpo(home, "backup", str(place))
        assert done.returncode == 0, done.stderr
        refused |= {
            "is where the store is": madpo(home, "backup", str(home / "store" / "backups")),
            "stop it first": madpo(home, "restore", str(place)),
        }
    refused |= {
        "holds a queue": madpo(home, "restore", str(place)),
        "snapshot's name": madpo(home, "restore", str(place), "--snapshot", "newest"),
    }
    (home / "redis" / "appendonlydir").rename(tmp_path / "aside")
    (home / "store" / "pins").mkdir()
    (home / "store" / "pins" / "x.json").write_text("{}")
    refused |= {"is not from this snapshot": madpo(home, "restore", str(place))}
    for said, done in refused.items():
        assert (done.returncode, said in done.stderr) == (1, True), (said, done.stderr)


def test_a_backup_is_nobody_elses(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "place"
    with without_workers(home) as stack, stack.client() as client:
        client.datasets.upload([{"prompt": "the film was"}])
    assert madpo(home, "backup", str(place)).returncode == 0
    open_to_others = [path for path in [place, *place.rglob("*")] if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []


@pytest.mark.parametrize("lost", ["a weight", "everything"])
def test_a_store_that_lost_something_gets_it_back(tmp_path: Path, lost: str) -> None:
    home, place = tmp_path / "home", tmp_path / "place"
    with without_workers(home) as stack, stack.client() as client:
        dataset = client.datasets.upload([{"prompt": "the film was"}])
    assert madpo(home, "backup", str(place)).returncode == 0
    part = next((home / "store" / "datasets").rglob("part-*"))
    if lost == "a weight":
        part.unlink()
    else:
        (home / "store").rename(tmp_path / "lost")
    (home / "redis" / "appendonlydir").rename(tmp_path / "aside")
    done = madpo(home, "restore", str(place))
    assert done.returncode == 0, done.stderr
    with without_workers(home) as stack, stack.client() as client:
        assert client.datasets.get(dataset.dataset_id) == dataset


def test_a_damaged_backup_is_named_and_the_next_is_made(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "place"
    with without_workers(home) as stack, stack.client() as client:
        client.datasets.upload([{"prompt": "the film was"}])
    assert madpo(home, "backup", str(place)).returncode == 0
    (damaged,) = (place / "snapshots").iterdir()
    damaged.write_bytes(b"")
    for arguments in (("--list",), ("--verify", "--keep", "1")):
        done = madpo(home, "backup", str(place), *arguments)
        assert done.returncode == 1
        assert f"snapshots/{damaged.name}" in done.stderr
    assert [path.suffix for path in (place / "snapshots").iterdir()] == [".json"] * 2
    done = madpo(home, "backup", str(place), "--keep", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert not damaged.exists()
