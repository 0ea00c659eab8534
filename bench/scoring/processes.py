"""Services that score, whoever's they are, as processes: started, waited for, measured."""

import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.meters import process_cpu_s

START_TIMEOUT_S = 300.0


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
