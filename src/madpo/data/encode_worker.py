"""A process that works with a tokenizer: `python -m madpo.data.encode_worker DIRECTORY [BASE CPU_SECONDS BYTES]`.

Functions and their arguments come in on standard input, what they answer goes out on standard output, both pickled: the
pipe is between two processes of ours. Started afresh rather than forked, so that no thread or lock of the parent is in
it. The limits are those of the process, and the processor time that of loading; each call brings its own.
"""

import math
import os
import pickle
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

OUT_OF_MEMORY = 71
"""Exit code of a process that has no memory left to answer with."""

_LONGEST_MESSAGE = 4000


def main(directory: Path, base_directory: Path | None = None, cpu_s: int | None = None, memory_bytes: int = 0) -> None:
    """Work until the input ends."""
    if cpu_s is not None:
        _limit(resource.RLIMIT_AS, memory_bytes)
        _limit(resource.RLIMIT_CORE, 0)
        _allow(cpu_s)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    # The parallelism is that of several workers; and the tokenizer would bring torch along where it is installed, some
    # seconds and hundreds of megabytes for each of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        _work(directory, base_directory, answers)
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
        if cpu_s is not None:
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
    _, directory, *more = sys.argv
    if more:
        base, cpu, memory = more
        main(Path(directory), Path(base) if base else None, int(cpu), int(memory))
    else:
        main(Path(directory))
