"""A tokenizer and its chat template in a process of its own, which has only so much processor time and memory.

A template is a program, and a tokenizer's patterns can take for ever; both come from whoever uploaded the model. What
goes too far ends the process, which is replaced when next it is needed: nobody waits for it but who asked.
"""

import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madpo.data.forking import Forked, Forker, has_something
from madpo.errors import InvalidArgumentError, MadpoError, UnavailableError

OUT_OF_MEMORY = 71
"""Exit code of a process that has no memory left to answer with."""

_EXIT_S = 5.0
"""That a process which has closed its pipes is given to be gone."""
_CRASHES = {
    -signum for signum in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS)
}
"""How a process ends by what it does itself; other signals come from outside."""
_forker = Forker("madpo.data.encode_worker")


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process may take; more ends it."""

    load_cpu_s: int = 60
    """Processor time to load the tokenizer."""
    text_cpu_s: int = 20
    """To render and tokenize the texts of a call; an honest text of 16 MiB takes less."""
    row_cpu_s: int = 2
    """Besides, for each row of a chunk; an honest one of a hundred turns takes less."""
    memory_bytes: int = 2 << 30
    """Address space."""
    wall_per_cpu: float = 10.0
    """A call that only waits is given up after so many times its processor time."""


class TokenizerProcess:
    """Runs functions on the tokenizer of a model directory elsewhere, one at a time. May be used from several threads.

    Args:
        directory: Of a model or an adapter; read again whenever the process has to be replaced.
        base_directory: Of the adapter's base.
        limits: Of the process.

    Attributes:
        limits: As given.
    """

    def __init__(self, directory: Path, *, base_directory: Path | None = None, limits: Limits | None = None) -> None:
        self._directory, self._base, self.limits = directory, base_directory, limits or Limits()
        self._lock = threading.Lock()
        self._process: Forked | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, cpu_s: int) -> Any:
        """The function's answer, given the tokenizer and the arguments.

        Args:
            function: Of a module: it travels by its name.
            arguments: And they by pickle, as the answer does.
            cpu_s: Most processor time.

        Raises:
            InvalidArgumentError: The tokenizer cannot be loaded, went beyond its limits, or crashes on this each time.
            UnavailableError: The process was ended from outside, or could not be started; another call may pass.
            MadpoError: What the function raised.
        """
        with self._lock:
            try:
                answer = self._ask(function, arguments, cpu_s)
            except _CrashError:
                # Once may be what came before it in that process; on this alone, in a new one, it is this.
                try:
                    answer = self._ask(function, arguments, cpu_s)
                except _CrashError as again:
                    raise InvalidArgumentError(
                        f"the tokenizer or chat template of {self._directory.name} crashes on this each time ({again})"
                    ) from again
        if isinstance(answer, MadpoError):
            raise answer
        return answer

    def start(self) -> None:
        """Have the process load the tokenizer, and do not wait for it. Raises UnavailableError."""
        with self._lock:
            if self._process is None:
                self._start()

    def load(self) -> None:
        """Have the process load the tokenizer within its limits; raises what `call` does."""
        self.call(_nothing, cpu_s=self.limits.load_cpu_s)

    def close(self) -> None:
        """End the process, and a call that is under way; another would start a new one."""
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            if self._process is not None:
                self._end()

    def _ask(self, function: Callable[..., Any], arguments: tuple[Any, ...], cpu_s: int) -> Any:
        if self._process is not None and has_something(self._process.stdout, within_s=0.0):
            self._end()  # it ended while nothing was asked of it
        allowed_s = cpu_s if self._process else cpu_s + self.limits.load_cpu_s
        process = self._process or self._start()
        try:
            pickle.dump((function, arguments, cpu_s), process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            if not has_something(process.stdout, within_s=allowed_s * self.limits.wall_per_cpu):
                raise TimeoutError
            return pickle.load(process.stdout)  # noqa: S301 - of a process of our own
        except TimeoutError as error:
            self._end()
            raise UnavailableError(
                f"the tokenizing process of {self._directory.name} came to nothing in "
                f"{allowed_s * self.limits.wall_per_cpu:.0f} s, though it took less processor time than it may"
            ) from error
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise self._blame(self._end(), cpu_s) from error

    def _blame(self, code: int, cpu_s: int) -> Exception:
        """Why the process ended with this code: by what it was given to do, or not."""
        what = f"the tokenizer or chat template of {self._directory.name}"
        if code == -signal.SIGXCPU:
            return InvalidArgumentError(
                f"{what} went beyond {cpu_s} s of processor time, and was ended: give it shorter texts, or look for "
                "loops in its template"
            )
        if code in (OUT_OF_MEMORY, -signal.SIGABRT):  # libraries that get no memory abort
            return InvalidArgumentError(
                f"{what} went beyond {self.limits.memory_bytes >> 20} MiB of memory, and was ended: give it shorter "
                "texts, or look for what its template multiplies"
            )
        if code in _CRASHES:
            return _CrashError(_name(code))
        return UnavailableError(
            f"the tokenizing process of {self._directory.name} ended ({_name(code)}) by nothing that it was asked for: "
            "try again; if this machine is short of memory, give it more"
        )

    def _start(self) -> Forked:
        # That in which it is forked may work in another folder.
        directories = [os.path.abspath(self._directory), os.path.abspath(self._base) if self._base else ""]
        try:
            self._process = _forker.start([*directories, str(self.limits.load_cpu_s), str(self.limits.memory_bytes)])
        except OSError as error:  # no process, file or memory left
            raise UnavailableError(f"no process to tokenize for {self._directory.name} in: {error}") from error
        # Nobody need close what is dropped with the model it belongs to.
        self._finalizer = weakref.finalize(self, self._process.close)
        return self._process

    def _end(self) -> int:
        """Be rid of the process; its exit code, as `subprocess` gives it."""
        process, self._process = self._process, None
        assert process is not None
        if has_something(process.stdout, within_s=0.0):
            process.wait(_EXIT_S)  # it closed its end: the code is its own, not that of being killed
        self._finalizer()
        code = process.wait()
        assert code is not None
        return code


def _nothing(_: Any) -> None:
    """What is asked of a process that is only to be there."""


class _CrashError(Exception):
    """The process ended by a fault of its own, and which."""


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else f"code {code}, its standard error says why"
    except ValueError:
        return f"signal {-code}"
