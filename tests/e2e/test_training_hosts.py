"""Jobs over several ranks and hosts, from the queue to the published model; hosts are trainer services on loopback."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from madpo.ports import JobRequest
from madpo.queue.queue import connect
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import CheckpointPublished, DatasetKind, JobKind, JobProgress, JobState, PreferencePair
from tests.model_directories import save_directory

PAIRS = [
    PreferencePair("the film", "was good ." + " good" * (index % 5), "bad ." + " the" * (index // 5), index / 10, index)
    for index in range(20)
]


@dataclass(frozen=True)
class Site:
    """A queue, a store and a job to do."""

    home: Path
    redis_url: str
    namespace: str
    spec: dict

    async def create_job(self, **training):
        spec = self.spec | {"training": self.spec["training"] | training}
        async with self.queue() as queue:
            request = JobRequest(uuid4().hex, JobKind.POLICY_TRAINING, spec)
            return (await queue.create(request)).job_id

    async def until_checkpoint(self, job_id):
        await self.until(job_id, lambda event: isinstance(event, CheckpointPublished))

    async def until(self, job_id, condition):
        async with self.queue() as queue:
            async for event in queue.watch(job_id):
                if condition(event.event):
                    return
        raise AssertionError("the job ended before")

    async def until_end(self, job_id):
        async with self.queue() as queue:
            async for _ in queue.watch(job_id):
                pass
            job = await queue.get(job_id)
        assert job.state is JobState.SUCCEEDED, job.reason
        return job

    def queue(self):
        return _Connected(self.redis_url, self.namespace)

    @contextmanager
    def host(self, name, **settings):
        """A trainer service."""
        environment = {
            "STORE_URL": f"file://{self.home / 'store'}",
            "REDIS_URL": self.redis_url,
            "REDIS_NAMESPACE": self.namespace,
            "WORKSPACE": str(self.home / name),
            "POLL_S": "0.05",
            "GRACE_S": "1",
            "THREADS": "1",
            **settings,
        }
        log = self.home / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "madpo_trainer"],
                env=os.environ | {f"MADPO_TRAINER_{key}": str(value) for key, value in environment.items()},
                stdout=output,
                stderr=output,
            )
        try:
            yield Host(process, log)
        finally:
            process.kill()
            process.wait()


class _Connected:
    def __init__(self, url, namespace):
        self._queue = connect(url, namespace=namespace)

    async def __aenter__(self):
        return self._queue

    async def __aexit__(self, *_):
        await self._queue.close()


@dataclass(frozen=True)
class Host:
    process: subprocess.Popen
    log: Path

    def ranks(self):
        """The ranks of this host, as processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "madpo_trainer.run" in child.cmdline()]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def two_hosts():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return {"NNODES": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NPROC_PER_NODE": 1}


@pytest.fixture(scope="module")
def site(tmp_path_factory, redis_url, make_toy_lm, make_toy_tokenizer):
    home = tmp_path_factory.mktemp("hosts")
    store = LocalStore(home / "store")
    save_directory(make_toy_lm(), make_toy_tokenizer(), home / "model")
    model, _ = ModelStore(store, home / "cache").publish(home / "model", display_name="toy", kind="causal_lm")
    dataset, _ = DatasetStore(store).write(
        PAIRS, kind=DatasetKind.PREFERENCE, display_name="pairs", scratch=home / "scratch"
    )
    training = {
        "global_batch_size": 8,
        "micro_batch_tokens": 40,
        "max_steps": 30,  # enough that a run is still going when its first checkpoint is heard of
        "checkpoint_every_steps": 2,
        "max_tokens": 32,
        "optimizer": {"learning_rate": 1e-3},
    }
    spec = {
        "model": {"model_id": model.model_id},
        "dataset": dataset.dataset_id,
        "method": {"name": "madpo", "params": {"normalize_weights": True}},
        "margin": {"source": "dataset"},
        "training": training,
    }
    return Site(home, redis_url, f"test-{uuid4().hex}", spec)


@pytest.fixture(scope="module")
async def undisturbed(site):
    """The model of two ranks on one host."""
    with site.host("calm", NPROC_PER_NODE=2):
        return (await site.until_end(await site.create_job())).result.model_id


async def test_a_killed_rank_ends_the_attempt_and_the_next_one_ends_with_the_same_weights(site, undisturbed):
    with site.host("one-host", NPROC_PER_NODE=2) as host:
        job_id = await site.create_job()
        await site.until_checkpoint(job_id)
        ranks = host.ranks()
        assert len(ranks) == 2
        ranks[1].kill()

        job = await site.until_end(job_id)

        assert job.attempt == 2
        assert job.result.model_id == undisturbed
        assert host.stop() == 0


async def test_two_hosts_train_one_job_and_outlive_the_loss_of_one(site, undisturbed):
    hosts = two_hosts()
    with ExitStack() as stack:
        follower = stack.enter_context(site.host("host-1", NODE_RANK=1, **hosts))
        leader = stack.enter_context(site.host("host-0", NODE_RANK=0, **hosts))
        job_id = await site.create_job()
        await site.until_checkpoint(job_id)
        ranks = follower.ranks()
        assert [len(ranks), len(leader.ranks())] == [1, 1]
        follower.process.kill()
        psutil.wait_procs(ranks, timeout=30)
        assert not any(rank.is_running() for rank in ranks)
        again = stack.enter_context(site.host("host-1-again", NODE_RANK=1, **hosts))

        job = await site.until_end(job_id)

        assert job.attempt == 2
        assert job.result.model_id == undisturbed
        assert (again.stop(), leader.stop()) == (0, 0)


async def test_a_follower_that_is_asked_to_stop_has_the_job_leave_a_checkpoint_first(site):
    hosts = two_hosts()
    with site.host("host-2", NODE_RANK=0, **hosts), site.host("host-3", NODE_RANK=1, **hosts) as follower:
        endless = {"max_steps": 100_000, "checkpoint_every_steps": 100_000}
        job_id = await site.create_job(**endless)
        await site.until(job_id, lambda event: isinstance(event, JobProgress) and event.step > 0)

        assert follower.stop() == 0

        await site.until(job_id, lambda event: isinstance(event, CheckpointPublished))
