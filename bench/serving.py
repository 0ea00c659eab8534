"""What the benchmarks of the reward service share: model and pairs to score, replicas as processes, their counters."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "bench"
VOCABULARY = 2048
SIZES = {"body": (6, 384, 1024, 6), "tiny": (2, 64, 128, 4)}
"""Layers, hidden size, intermediate size, heads."""


def lengths(draw: random.Random, *, prompt: int, response: int) -> tuple[int, int, int]:
    """Tokens of a prompt and two responses: log-normal around these medians, as conversations are."""

    def one(median: int, sigma: float, most: int) -> int:
        return int(min(most, max(16, median * draw.lognormvariate(0.0, sigma))))

    return one(prompt, 0.7, 5 * prompt), one(response, 0.5, 3 * response), one(response, 0.5, 3 * response)


def make_pairs(count: int, *, seed: int = 0, prompt: int = 128, response: int = 128) -> list[Any]:
    """Seeded preference pairs, a word a token."""
    from madpo.types import PreferencePair

    draw = random.Random(seed)

    def text(tokens: int) -> str:
        return " ".join(f"t{draw.randrange(4, VOCABULARY)}" for _ in range(tokens))

    return [PreferencePair(*map(text, lengths(draw, prompt=prompt, response=response))) for _ in range(count)]


def publish_model(root: Path, size: str = "body") -> tuple[str, str]:
    """A random Llama reward model with a word-level tokenizer in a store under `root`: store URL and model id."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    from madpo.models.load import save_model
    from madpo.storage.local import LocalStore
    from madpo.storage.models import ModelStore

    words = {"<pad>": 0, "<unk>": 1, "<eos>": 2, "<bos>": 3} | {f"t{i}": i for i in range(4, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>", "bos_token": "<bos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **specials)
    layers, hidden, intermediate, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=8192,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    save_model(LlamaForSequenceClassification(config), tokenizer, root / "model")
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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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
    port, metrics_port = _free_port(), _free_port()
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def conditions() -> dict[str, Any]:
    """What the machine was doing, for the report."""
    import torch

    return {"load": os.getloadavg(), "torch": torch.__version__, "threads": torch.get_num_threads()}
