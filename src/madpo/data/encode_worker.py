"""Processes that work with a tokenizer, forked from this program: `madpo.data.forking` starts it, and asks for them.

Functions and their arguments come in on standard input, what they answer goes out on standard output, both pickled: the
pipe is between two processes of ours. The limits are those of the process, and the processor time that of loading; each
call brings its own.
"""

import contextlib
import math
import os
import pickle
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from madpo.data.forking import serve
from madpo.data.tokenizer_process import OUT_OF_MEMORY
from madpo.imports import lasting

_LONGEST_MESSAGE = 4000


def main(control: socket.socket) -> None:
    """Fork such processes until `control` closes; and in each, work until its input ends."""
    # The parallelism is that of several workers; and the tokenizer would bring torch along where it is installed, some
    # seconds and hundreds of megabytes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.modules["torch"] = None  # type: ignore[assignment]
    with lasting():
        from transformers import AutoConfig, AutoTokenizer  # noqa: F401

        from madpo.data import encode, tokenizer  # noqa: F401
    if (asked := serve(control)) is None:
        return
    directory, base_directory, cpu_s, memory_bytes = asked
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(Path(directory).name)  # the start of it is what `ps` then calls the process
    _limit(resource.RLIMIT_AS, int(memory_bytes))
    _limit(resource.RLIMIT_CORE, 0)
    _allow(int(cpu_s))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    try:
        _work(Path(directory), Path(base_directory) if base_directory else None, answers)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # to end in order would take memory


def _work(directory: Path, base_directory: Path | None, answers: BinaryIO) -> None:
    from madpo.data.tokenizer import load_tokenizer
    from madpo.errors import MadpoError

    load = partial(load_tokenizer, directory, base_directory=base_directory)
    tokenizer, is_told = _outcome(load), False
    while True:
        try:
            function, arguments, cpu_s = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        _allow(cpu_s)
        if isinstance(tokenizer, MadpoError) and is_told:
            tokenizer = _outcome(load)  # what could not be read once may be another time
        is_told = True
        failed = isinstance(tokenizer, MadpoError)
        answer = tokenizer if failed else _outcome(partial(function, tokenizer, *arguments))
        pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _outcome(work: Callable[[], Any]) -> Any:
    """What comes of it: an answer, or an error that is told."""
    from madpo.errors import InvalidArgumentError, MadpoError

    try:
        return work()
    except MadpoError as error:
        return _shortened(error)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizer's library, which no function catches
        return _shortened(InvalidArgumentError(f"the tokenizer fails: {type(error).__name__}: {error}"))


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (ValueError, OSError):
        if sys.platform == "linux":  # others cannot bound the address space
            raise


def _allow(cpu_s: int) -> None:
    """Let the process take so much processor time from now on; the kernel ends it then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + cpu_s, hard))


def _shortened(error: Any) -> Any:
    """A template may raise an error with as long a text as it likes."""
    if len(str(error)) > _LONGEST_MESSAGE:
        return type(error)(f"{str(error)[:_LONGEST_MESSAGE]}...")
    return error


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
