"""What ended a process of a run: its last exception in one line, for the job's reason.

Each process leaves its own in the workspace, so that the supervisor can tell what came first from what came of it.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from madpo.errors import (
    DeadlineExceededError,
    InternalError,
    MadpoError,
    OverloadedError,
    StaleAttemptError,
    UnavailableError,
)
from madpo.worker.credentials import without_credentials
from madpo.worker.files import write_whole

_MESSAGE_CHARS = 500
_PACKAGES = re.compile(r"madpo(_\w+)?(\.|$)")
_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""Addresses, steps, attempts and sizes: they may differ where the error is the same."""
_PEER_LOST = re.compile(
    r"(?i)connection (closed|reset) by peer|broken pipe|remote process exited|peer closed|another rank failed"
)
"""What a rank says when another one has ended."""
_OF_THE_MACHINE = re.compile(
    r"(?i)out of memory|not enough memory|can't allocate memory|shared memory|CUDA|NCCL|gloo|connect|timed? ?out"
)
"""Errors of these are raised under general types and may be gone on the next try."""
_DETERMINISTIC = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What depends on code and data alone: seen twice at one place, it will come a third time."""
_OUTSIDE = (UnavailableError, OverloadedError, DeadlineExceededError, StaleAttemptError)
"""Errors of neighbours and of other attempts."""
_ADVICE = (
    (
        r"out of memory|not enough memory|can't allocate memory|^MemoryError",
        "take less at a time: training.micro_batch_tokens, max_tokens or generation_batch_size; or lora, or "
        "activation_checkpointing",
    ),
    (
        r"does not have a deterministic implementation",
        "leave out training.deterministic: on this device the model needs an operation whose rounding varies",
    ),
    (
        r"shared memory|/dev/shm|unable to write to file </torch_",
        "give the container more shared memory: shm_size in compose, --shm-size of docker run",
    ),
    (r"No space left on device", "make room on the disk of the worker's workspace"),
    (r"^PermissionError|Permission denied", "the user that the worker runs as needs access to it"),
    (r"size mismatch for", "the weights do not fit their config.json: save model and adapter again, both as trained"),
    (
        r"index out of range in self|device-side assert",
        "a token id may lie outside the model's embeddings: use the tokenizer the model was saved with",
    ),
    (
        r"Padding_idx must be within num_embeddings",
        "pad_token_id in the model's config.json has no embedding: give null there, or a token that has one",
    ),
    (r"^ImportError|^ModuleNotFoundError", "install it where the worker runs"),
    (r"no kernel image|driver version is insufficient", "the installed torch does not fit this GPU or its driver"),
)
"""What to do about errors that do not say it themselves; patterns of `type: message`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a process ended that should not have.

    Attributes:
        message: One line, bounded, without credentials.
        type: Name of the exception; "" where the message stands for itself.
        place: `module:function` where it was raised, as far as it is ours.
        advice: What to do about it, where that is known.
        is_deterministic: Whether the same code and data must lead to it again.
        signal: What killed the process, if a signal did.
        from_outside: Whether the job had no part in it: a process was killed by somebody, or a neighbour was away.
        time: When, in seconds since the epoch.
    """

    message: str
    type: str = ""
    place: str = ""
    advice: str = ""
    is_deterministic: bool = False
    signal: int | None = None
    from_outside: bool = False
    time: float = 0.0

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """What an exception says; of a group, the first of its errors."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        name, message = type(error).__name__, one_line(str(error))
        stands_alone = isinstance(error, MadpoError) and not isinstance(error, InternalError) and bool(message)
        return cls(
            message=message,
            type="" if stands_alone else name,
            place=_place(error),
            advice="" if stands_alone else _advice(f"{name}: {message}"),
            from_outside=isinstance(error, _OUTSIDE),
            is_deterministic=isinstance(error, _DETERMINISTIC) and not _OF_THE_MACHINE.search(f"{name}: {message}"),
            time=time.time(),
        )

    @property
    def line(self) -> str:
        """`RuntimeError: what happened (in madpo_trainer.loop:_step): what to do`."""
        said = ": ".join(filter(None, (self.type, self.message)))
        place = f" (in {self.place})" if self.type and self.place else ""
        return f"{said}{place}" + (f": {self.advice}" if self.advice else "")

    @property
    def fingerprint(self) -> str:
        """The same for the same error at the same place; "" for one that another attempt may be spared."""
        if not self.is_deterministic:
            return ""
        same = "\n".join((self.type, self.place, _VARYING.sub("#", self.message)))
        return hashlib.sha256(same.encode()).hexdigest()[:16]

    @property
    def is_consequence(self) -> bool:
        """Whether it only says that another rank has ended."""
        return self.signal is None and bool(_PEER_LOST.search(self.message))


@contextlib.contextmanager
def telling(workspace: Path) -> Iterator[None]:
    """Leave in the workspace what the block raises."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may be what failed
            leave_failure(workspace, os.getpid(), Failure.of(error))
        raise


def leave_failure(workspace: Path, pid: int, failure: Failure) -> None:
    """Write down how a process ended; what it said itself stays."""
    path = workspace / f"failure-{pid}.json"
    if not path.exists():
        write_whole(path, json.dumps(asdict(failure)))


def first_failure(workspace: Path) -> Failure | None:
    """What ended the run: the earliest failure that is not the consequence of another."""
    failures = [Failure(**json.loads(path.read_text())) for path in workspace.glob("failure-*.json")]
    return min(failures, key=lambda each: (each.is_consequence, each.time), default=None)


def one_line(text: str) -> str:
    """Text for a reason: on one line, bounded, without credentials."""
    text = without_credentials(" ".join(text.split()))
    return text if len(text) <= _MESSAGE_CHARS else f"{text[: _MESSAGE_CHARS - 4]} ..."


def _place(error: BaseException) -> str:
    """The innermost frame of ours, or the innermost at all where none is."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [frame for frame in frames if frame.f_globals.get("__name__") != __name__]
    ours = [frame for frame in frames if _PACKAGES.match(frame.f_globals.get("__name__", ""))]
    return "".join(f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}" for frame in (ours or frames)[-1:])


def _advice(said: str) -> str:
    return next((advice for pattern, advice in _ADVICE if re.search(pattern, said)), "")
