"""Replicas of the reward service as pinned processes, the model they score with, and their counters."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import models
from bench.meters import process_cpu_s
from bench.scoring.processes import free_port
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore

TOKEN = secrets.token_urlsafe()


def publish_model(root: Path, size: str = "body") -> tuple[str, str]:
    """A random reward model in a store under `root`: store URL and model id."""
    models.save_reward_model(models.SIZES[size], root / "model")
    store = ModelStore(LocalStore(root / "store"), root / "publisher")
    model, _ = store.publish(root / "model", display_name=size, kind="reward")
    return f"file://{root / 'store'}", model.model_id


@dataclass
class Replica:
    """A reward service in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int

    def cpu_s(self) -> float:
        """CPU-seconds of all its threads so far."""
        return process_cpu_s(self.process.pid)

    def peak_rss_bytes(self) -> int:
        """Most memory it ever held."""
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(line) * 1024

    def count(self, sample: str) -> float:
        """A sample of its metrics, as written there; 0 when absent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(sample + " "):
                    return float(line.rpartition(" ")[2])
        return 0.0


@contextmanager
def replicas(
    root: Path, store_url: str, model_id: str, *, cores: Sequence[int | None], cache_entries: int = 0, **settings: Any
) -> Iterator[list[Replica]]:
    """One replica per entry of `cores`, pinned to it (None: not pinned), with one torch thread; ready to score."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                _replica(root / f"cache-{index}", store_url, model_id, core, cache_entries=cache_entries, **settings)
            )
            for index, core in enumerate(cores)
        ]
        for replica in started:
            _wait_until_ready(replica)
        yield started


@contextmanager
def _replica(cache: Path, store_url: str, model_id: str, core: int | None, **settings: Any) -> Iterator[Replica]:
    port, metrics_port = free_port(), free_port()
    options = {
        "store_url": store_url,
        "cache": cache,
        "token": TOKEN,
        "port": port,
        "metrics_port": metrics_port,
        "threads": 1,
        "preload": json.dumps([model_id]),
        **settings,
    }
    environment = {f"MADPO_REWARD_{key.upper()}": str(value) for key, value in options.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "madpo_reward"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.DEVNULL,
    )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    try:
        yield Replica(process, port, metrics_port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(replica: Replica) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    give_up = time.monotonic() + 180
    with grpc.insecure_channel(f"127.0.0.1:{replica.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="madpo.v1.RewardService")
        while time.monotonic() < give_up:
            reply = stub.Check(request, timeout=180, wait_for_ready=True)
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                return
            time.sleep(0.1)
    raise TimeoutError(f"the replica on port {replica.port} is not ready")
