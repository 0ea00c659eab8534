"""Services that score, whoever's they are, as processes: started, waited for, measured."""

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.meters import process_cpu_s

START_TIMEOUT_S = 800.0


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


def post_json(url: str, body: Any) -> Any:
    """What a service answers to a request."""
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


def answers(url: str) -> bool:
    """Whether there is a service, and it is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def ask_all(
    ask: Callable[[tuple[str, str, str]], Sequence[float]], texts: Sequence[tuple[str, str, str]], *, in_flight: int
) -> list[float]:
    """Scores of all pairs, one request a pair, as many of them on their way at once as is asked for."""
    with ThreadPoolExecutor(in_flight) as callers:
        return [value for values in callers.map(ask, texts) for value in values]
