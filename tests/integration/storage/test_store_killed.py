"""An S3 server that is killed again and again while it is written to: what it has taken is there, and whole."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from madpo.config import StoreSettings
from madpo.errors import UnavailableError
from madpo.ports import ObjectStore
from madpo.storage import bundle
from madpo.storage.open import open_store
from tests.conftest import S3Process

KILLS = 4
WRITERS = 3
PATIENCE_S = 120


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Process]:
    directory = tmp_path / "seaweedfs"
    directory.mkdir()
    server = S3Process(directory, access_key="key", secret_key="secret-secret")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(server: S3Process) -> ObjectStore:
    return open_store(
        StoreSettings(
            store_url="s3://killed/tests",
            s3_endpoint=server.endpoint,
            s3_access_key=SecretStr("key"),
            s3_secret_key=SecretStr("secret-secret"),
        )
    )


@pytest.mark.promise("D3")
@pytest.mark.timeout(300)
def test_what_was_taken_is_there_and_whole_after_kills(server: S3Process, store: ObjectStore, tmp_path: Path) -> None:
    over = threading.Event()
    written: list[str] = []

    def write(writer: int) -> None:
        rng = random.Random(writer)
        for number in range(1000):
            if over.is_set():
                return
            prefix = f"bundles/{writer}-{number}"
            directory = tmp_path / prefix
            directory.mkdir(parents=True)
            for name in ("a", "b"):
                (directory / name).write_bytes(rng.randbytes(1 << 18))
            _published(store, prefix, directory)
            written.append(prefix)

    with ThreadPoolExecutor(WRITERS) as writers:
        tasks = [writers.submit(write, writer) for writer in range(WRITERS)]
        for kill in range(KILLS):
            _wait_until_longer(written, than=len(written) + WRITERS)
            server.kill()
            time.sleep(0.2 * kill)
            server.start()
        _wait_until_longer(written, than=len(written) + WRITERS)
        over.set()
        for task in tasks:
            task.result()

    assert len(written) > KILLS * WRITERS
    for prefix in written:
        copy = tmp_path / "copies" / prefix
        bundle.fetch(store, prefix, copy)
        for name in ("a", "b"):
            assert (copy / name).read_bytes() == (tmp_path / prefix / name).read_bytes()


def _published(store: ObjectStore, prefix: str, directory: Path) -> None:
    """As a service does: what is away is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            bundle.publish(store, prefix, directory, metadata={})
            return
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_until_longer(written: list[str], *, than: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(written) <= than:
        assert time.monotonic() < deadline
        time.sleep(0.05)
