"""A backup taken while everything goes on, written back into a new home: nothing is missing, and what ran goes on."""

import itertools
import json
import threading
from pathlib import Path

import pytest

from madpo.storage.backup import back_up
from madpo.storage.snapshots import Snapshots
from madpo.types import CheckpointPublished, JobState
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_client.store_access import find_store, open_place
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_training import policy_job, preference_rows, training
from tests.integration.client.test_embedded import madpo

STEPS = 120


@pytest.fixture(scope="module")
def busy_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    """A stopped home with a policy it has trained, a backup made in the midst of that, and what was there before."""
    home, place = tmp_path_factory.mktemp("stack"), tmp_path_factory.mktemp("place")
    with EmbeddedStack(home, threads=1, evaluators=0) as stack, stack.client() as client:
        make_base_model(home.parent / "base")
        base = client.models.upload(home.parent / "base", name="tiny")
        pairs = client.datasets.upload(preference_rows(96), name="pairs")
        reward = client.jobs.train_reward(model=base, dataset=pairs, training=training(max_steps=10))
        reward.wait()
        client.access.create_token("ana", role="submit")
        before = {"ledger": None, **everything(client)}
        policy = policy_job(client, base, pairs, reward, max_steps=STEPS)
        next(event for event in policy.watch() if isinstance(event.event, CheckpointPublished))
        with uploads(client):
            access = find_store(home)
            snapshot = back_up(access.store(), Snapshots(open_place(str(place), access)))
        assert not snapshot.damaged
        assert policy.refresh().state is JobState.RUNNING  # else the test shows nothing
        job = policy.wait()
        before |= {"policy": job.job_id, "model": job.result and job.result.model_id}
        before["ledger"] = client.jobs.ledger(job.job_id).to_pylist()
    return home, place, before


class uploads:  # noqa: N801 - reads as a block
    """Uploads one dataset after the other while the block runs."""

    def __init__(self, client: Client) -> None:
        self._client, self._over = client, threading.Event()
        self._thread = threading.Thread(target=self._upload)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _upload(self) -> None:
        for number in itertools.count():
            if self._over.is_set():
                return
            self._client.datasets.upload([{"prompt": f"{number} {row}"} for row in range(2000)], name="meanwhile")


def everything(client: Client) -> dict[str, object]:
    return {
        "jobs": {job.id: (job.refresh().state, job.refresh().result) for job in client.jobs.list()},
        "models": {model.model_id: model for model in client.models.list()},
        "datasets": {dataset.dataset_id: dataset for dataset in client.datasets.list()},
        "tokens": [token.name for token in client.access.tokens()],
    }


@pytest.mark.promise("D8")
@pytest.mark.slow
def test_all_is_there_again_and_the_job_that_ran_ends_as_it_would_have(
    busy_home: tuple[Path, Path, dict[str, object]], tmp_path: Path
) -> None:
    _, place, before = busy_home
    home = tmp_path / "restored"
    done = madpo(home, "restore", str(place))
    assert done.returncode == 0, done.stderr
    with EmbeddedStack(home, threads=1, evaluators=0) as stack, stack.client() as client:
        after = everything(client)
        policy = client.jobs.get(str(before["policy"]))
        assert policy.state in (JobState.PENDING, JobState.RUNNING)
        job = policy.wait()
        ledger = client.jobs.ledger(job.job_id).to_pylist()
    for kind in ("jobs", "models", "datasets"):
        kept, found = before[kind], after[kind]
        assert isinstance(kept, dict)
        assert isinstance(found, dict)
        assert kept.items() <= found.items()
    assert after["tokens"] == before["tokens"]
    assert job.attempt > 1
    assert job.result is not None
    assert job.result.model_id == before["model"]
    assert ledger == before["ledger"]


@pytest.mark.slow
def test_a_backup_again_copies_what_is_new(busy_home: tuple[Path, Path, dict[str, object]]) -> None:
    home, place, _ = busy_home
    first = json.loads(madpo(home, "backup", str(place), "--json", "--verify").stdout)
    again = json.loads(madpo(home, "backup", str(place), "--json", "--keep", "1").stdout)
    assert 0 < first["copied_bytes"] < first["size_bytes"]
    assert (again["copied_bytes"], again["size_bytes"]) == (0, first["size_bytes"])
    assert [each["name"] for each in json.loads(madpo(home, "backup", str(place), "--list", "--json").stdout)] == [
        again["name"]
    ]
