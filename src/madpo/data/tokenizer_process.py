"""A tokenizer and its chat template in a process of its own, which has only so much processor time and memory.

A template is a program, and a tokenizer's patterns can take for ever; both come from whoever uploaded the model. What
goes too far ends the process, which is replaced when next it is needed: nobody waits for it but who asked.
"""

import contextlib
import pickle
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError, MadpoError


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may take; more ends it."""

    load_cpu_s: int = 60
    """Processor time to start and load the tokenizer."""
    memory_bytes: int = 2 << 30
    """Address space."""
    wall_per_cpu: float = 10.0
    """A call that only waits is given up after so many times its processor time."""


class TokenizerProcess:
    """Runs functions on the tokenizer of a model directory elsewhere, one at a time. May be used from several threads.

    Args:
        directory: Of a model or an adapter.
        base_directory: Of the adapter's base.
        limits: Of the process.
    """

    def __init__(self, directory: Path, *, base_directory: Path | None = None, limits: Limits | None = None) -> None:
        self._directory, self._base, self._limits = directory, base_directory, limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, cpu_s: int) -> Any:
        """The function's answer, given the tokenizer and the arguments.

        Args:
            function: Of a module: it travels by its name.
            arguments: And they by pickle, as the answer does.
            cpu_s: Most processor time.

        Raises:
            InvalidArgumentError: The tokenizer cannot be loaded, or went beyond its limits.
            MadpoError: What the function raised.
        """
        with self._lock:
            allowed_s = cpu_s if self._process else cpu_s + self._limits.load_cpu_s
            process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                pickle.dump((function, arguments, cpu_s), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                process.stdin.flush()
                if not select.select([process.stdout], [], [], allowed_s * self._limits.wall_per_cpu)[0]:
                    raise TimeoutError
                answer: Any = pickle.load(process.stdout)  # noqa: S301 - of a process of our own
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                self._end()
                raise InvalidArgumentError(
                    f"the tokenizer or chat template of {self._directory.name} went beyond {cpu_s} s of processor "
                    f"time or {self._limits.memory_bytes >> 20} MiB of memory, and was ended: give it shorter texts, "
                    "or look for loops in its template"
                ) from error
        if isinstance(answer, MadpoError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, and a call that is under way; another would start a new one."""
        if (process := self._process) is not None:
            process.kill()

    def _start(self) -> "subprocess.Popen[bytes]":
        limits = (str(self._limits.load_cpu_s), str(self._limits.memory_bytes))
        command = [
            sys.executable,
            "-m",
            "madpo.data.encode_worker",
            str(self._directory),
            str(self._base or ""),
            *limits,
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        # Nobody need close what is dropped with the model it belongs to.
        self._finalizer = weakref.finalize(self, _kill, self._process)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process = None
            self._finalizer()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what could not be written any more
                pipe.close()
