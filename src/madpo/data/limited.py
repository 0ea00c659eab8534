"""Work with a tokenizer and its chat template that must not take more than its share.

Both come from whoever made the model: a template is a program, and a pattern can take for ever. A tokenizer of
`load_limited` has a process with limits, in which the functions marked `within_limits` run; with any other they run
where they are called.
"""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from madpo.data.tokenizer import load_tokenizer
from madpo.data.tokenizer_process import Limits, TokenizerProcess

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

P = ParamSpec("P")
R = TypeVar("R")

LIMITS = Limits(memory_bytes=4 << 30)
"""Of the processes of trainings, evaluations and checks; a chunk of long rows takes more than a request for scores."""

_processes: "WeakKeyDictionary[PreTrainedTokenizerBase, TokenizerProcess]" = WeakKeyDictionary()


def load_limited(
    directory: Path, *, base_directory: Path | None = None, process: TokenizerProcess | None = None
) -> "PreTrainedTokenizerBase":
    """As `load_tokenizer`, once that has been done within limits elsewhere; the process lives as long as the tokenizer.

    Args:
        directory: Of a model or an adapter; in use as long as the tokenizer is.
        base_directory: Of the adapter's base.
        process: One that works with it already.

    Raises:
        InvalidArgumentError: It cannot be loaded, or not within its limits.
        UnavailableError: Its process was ended from outside.
    """
    process = process or job_process(directory, base_directory=base_directory)
    process.load()
    tokenizer = load_tokenizer(directory, base_directory=base_directory)
    _processes[tokenizer] = process
    return tokenizer


def job_process(directory: Path, *, base_directory: Path | None = None) -> TokenizerProcess:
    """A process for a tokenizer, with the limits of jobs."""
    return TokenizerProcess(directory, base_directory=base_directory, limits=LIMITS)


def process_of(tokenizer: "PreTrainedTokenizerBase") -> TokenizerProcess | None:
    """Where work with it is done; None for here."""
    return _processes.get(tokenizer)


def within_limits(
    function: Callable[Concatenate["PreTrainedTokenizerBase", P], R],
) -> Callable[Concatenate["PreTrainedTokenizerBase", P], R]:
    """Marks a function of a module that renders or tokenizes: it is called where the tokenizer's process is.

    Beyond the limits of a text, where the tokenizer has a process, the call raises InvalidArgumentError.
    """

    @wraps(function)
    def call(tokenizer: "PreTrainedTokenizerBase", /, *args: P.args, **kwargs: P.kwargs) -> R:
        process = process_of(tokenizer)
        if process is None:
            return function(tokenizer, *args, **kwargs)
        answer: R = process.call(partial(call, **kwargs), *args, cpu_s=process.limits.text_cpu_s)
        return answer

    return call
