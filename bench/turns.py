"""Variants in processes of their own that work in turns: A B C A B C.

Each process starts and warms up once, then waits for its turn, so that all have the same neighbours, and none computes
while another is measured. The two ends talk in JSON lines over the process's standard input and output.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.meters import release_memory

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 900.0
TURN_TIMEOUT_S = 900.0


def arguments() -> tuple[dict[str, Any], str]:
    """Fields of the task, and the variant, from the command line of a variant's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("task", type=json.loads)
    options = parser.parse_args()
    return options.task, options.variant


class Turns:
    """The worker's end. Whatever libraries print goes to the error stream."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def done(self, result: Mapping[str, Any]) -> bool:
        """Hand over a result, the first when warm, and wait for the next turn; False when there is none."""
        self._out.write(json.dumps(result) + "\n")
        # Those that wait must not take memory from the one that works.
        release_memory()
        return bool(sys.stdin.readline())


class VariantError(RuntimeError):
    """A variant's process ended or went silent; says how it ended."""


class Variant:
    """The other end: starts the process of one variant.

    Args:
        name: For messages.
        command: Arguments; the first is a Python interpreter.
        threads: Of torch and of whatever else asks OpenMP.
        log: Takes the error stream.
    """

    def __init__(self, name: str, command: Sequence[str], *, threads: int, log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment(threads),
            )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def ready(self) -> dict[str, Any]:
        """Wait for the warm-up to end."""
        return self._read(READY_TIMEOUT_S)

    def turn(self) -> dict[str, Any]:
        """Let it work once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error("ended") from None
        return self._read(TURN_TIMEOUT_S)

    def close(self) -> None:
        """End the process: by its own will, else by force."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        if not self._selector.select(deadline - time.monotonic()):
            raise self._error(f"said nothing for {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._error("ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self, what: str) -> VariantError:
        self.close()
        tail = self._log.read_text(errors="replace").strip().splitlines()[-8:]
        return VariantError(
            f"{self.name} {what} (exit code {self._process.returncode}); its last words, of {self._log}: "
            + "\n".join(tail)
        )


def environment(threads: int) -> dict[str, str]:
    """Of every measured process: threads that do not spin while they wait, and nothing fetched from anywhere."""
    settings: Mapping[str, str] = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **settings}
