"""What a scoring variant is given, whoever's it is: a reward model, pairs, and how many may be on their way at once."""

import argparse
import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench import models
from bench.lengths import SHAPES, PairLengths, draw_lengths, fill
from bench.meters import process_cpu_s

START_TIMEOUT_S = 300.0
PADDED = "padded batches of 32 as they arrive"
PACKED = "packed rows of 8 pairs (not bit-stable)"
"""Ways of `bench.score` by the names they have in results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringTask:
    """Pairs to be scored once a round, none of them seen before by whoever keeps scores."""

    size: str
    pairs: int
    rounds: int
    in_flight: int = 64
    """Pairs that were asked for and not answered."""
    shape: str = "128/128"
    seed: int = 5
    threads: int = 1

    def texts(self, turn: int) -> list[tuple[str, str, str]]:
        """Prompt, chosen and rejected of a round; other words in every round, the same lengths."""
        lengths = draw_lengths(SHAPES[self.shape], self.pairs, seed=self.seed)
        return pair_texts(lengths, self.size, seed=self.seed + 1000 * (turn + 1))

    def argument(self) -> str:
        """The task as an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls) -> tuple[Self, str]:
        """Task and variant from the command line of a variant's process."""
        parser = argparse.ArgumentParser()
        parser.add_argument("variant")
        parser.add_argument("task", type=json.loads)
        options = parser.parse_args()
        return cls(**options.task), options.variant


def pair_texts(lengths: list[PairLengths], size: str, *, seed: int) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of pairs of these lengths, in words of a model's vocabulary."""
    pairs = fill(lengths, models.SIZES[size].vocabulary, seed=seed)
    return [
        (models.text(prompt) + " ", models.text(chosen), models.text(rejected)) for prompt, chosen, rejected in pairs
    ]


def save_reward_model(size: models.Size, directory: Path) -> None:
    """Write a reward model as a directory that transformers of today and of its last major version read."""
    models.reward_model(size).save_pretrained(directory)
    models.tokenizer(size.vocabulary).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def measure_service(pid: int, work: Callable[[], Sequence[float]]) -> dict[str, Any]:
    """Score over a service: its CPU-seconds, the caller's beside them, and the scores.

    Args:
        pid: Of the service.
        work: Gives all scores: chosen and rejected of the first pair, of the second...
    """
    server, client, wall = process_cpu_s(pid), time.process_time(), time.perf_counter()
    scores = list(work())
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": process_cpu_s(pid) - server,
        "client_cpu_s": time.process_time() - client,
        "scores": scores,
    }


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(is_up: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a service to start."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up():
        assert process.poll() is None, f"the service ended with code {process.returncode}"
        assert time.monotonic() < deadline, f"the service did not start within {START_TIMEOUT_S:.0f} s"
        time.sleep(0.2)
