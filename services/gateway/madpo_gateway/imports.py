"""Imports from the hub, each in a process of its own.

The hub library waits and tries again as long as it likes, in threads that nothing ends. A process can be ended: when
the client has gone, when its time is over, and with the gateway.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from madpo.background import exit_after
from madpo.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    MadpoError,
    NotFoundError,
)
from madpo_gateway.hub import fetch_dataset_files, fetch_from_hub, find_commit
from madpo_gateway.spool import size_of
from madpo_gateway.turns import Turns

logger = logging.getLogger(__name__)

_ERRORS: dict[str, type[MadpoError]] = {error.__name__: error for error in (NotFoundError, FailedPreconditionError)}
_WAITING = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched, and where to."""

    kind: Literal["model", "dataset"]
    hub_id: str
    revision: str
    directory: str
    limit_bytes: int
    patterns: Sequence[str] = ()
    """Of a dataset: which files."""
    endpoint: str | None = None
    """URL of the hub; None is the library's default."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The commit that the revision is, and of a dataset the files: names and local paths."""

    commit: str
    files: Sequence[tuple[str, str]] = ()


class HubImports:
    """Imports of a gateway: so many at once, others wait their turn.

    Args:
        at_once: How many.
        timeout_s: Longest time for one.
        take_bytes: Told of the bytes that each brings; raises OverloadedError for a caller that may bring no more.
    """

    def __init__(
        self, *, at_once: int, timeout_s: float, take_bytes: Callable[[int], None] = lambda count: None
    ) -> None:
        self._turns = Turns("imports from the hub", at_once=at_once, waiting=_WAITING)
        self._timeout_s, self._take_bytes = timeout_s, take_bytes

    async def fetch(self, wanted: Wanted) -> Fetched:
        """Fetch one revision; cancelled, nothing of it goes on.

        Raises:
            InvalidArgumentError: The files are too large, or a pattern fits none.
            NotFoundError: The hub has no such repository or revision.
            FailedPreconditionError: There is no hub library here, or the hub does not answer or refuses.
            OverloadedError: Too many imports go on, and wait; or the caller may bring no more.
            DeadlineExceededError: It took too long.
        """
        self._take_bytes(0)
        async with self._turns.turn():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "madpo_gateway.imports"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer, said = await _ask(process, wanted)
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"the hub did not give {wanted.kind} {wanted.hub_id} within {self._timeout_s:g} s "
                    "(import_timeout_s): download it where the hub can be reached and upload it instead"
                ) from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                # Its files can be removed only once it writes no more.
                await asyncio.shield(process.wait())
        fetched = _read_answer(answer, said)
        self._take_bytes(await asyncio.to_thread(size_of, Path(wanted.directory)))
        return fetched


async def _ask(process: asyncio.subprocess.Process, wanted: Wanted) -> tuple[bytes, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    # Left open: it ends with the gateway, and the process with it.
    process.stdin.write(json.dumps(asdict(wanted)).encode() + b"\n")
    return await asyncio.gather(process.stdout.read(), process.stderr.read())


def _read_answer(answer: bytes, said: bytes) -> Fetched:
    try:
        fields = json.loads(answer)
    except ValueError as error:
        logger.exception("an import ended without an answer", extra={"said": _without_token(said)[-2000:]})
        raise InternalError("an import ended without an answer") from error
    if "error" not in fields:
        return Fetched(fields["commit"], [(name, path) for name, path in fields["files"]])
    if fields["error"] == InvalidArgumentError.__name__:
        raise InvalidArgumentError(fields["message"], [FieldViolation(*each) for each in fields["violations"]])
    raise _ERRORS[fields["error"]](fields["message"])


def _without_token(said: bytes) -> str:
    text, token = said.decode(errors="replace"), os.environ.get("HF_TOKEN")
    return text.replace(token, "***") if token else text


def _environment() -> dict[str, str]:
    """Of this process, without the gateway's secrets; what is the hub library's own stays, HF_TOKEN among it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    return kept | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


# ---- in the process


def _fetch(wanted: Wanted) -> Fetched:
    directory, endpoint = Path(wanted.directory), wanted.endpoint
    commit = find_commit(wanted.hub_id, wanted.revision, kind=wanted.kind, endpoint=endpoint)
    common: Any = {"commit": commit, "directory": directory, "limit_bytes": wanted.limit_bytes, "endpoint": endpoint}
    if wanted.kind == "model":
        fetch_from_hub(wanted.hub_id, **common)
        return Fetched(commit)
    files = fetch_dataset_files(wanted.hub_id, patterns=wanted.patterns, **common)
    return Fetched(commit, [(name, str(path)) for name, path in files])


def main() -> None:
    """Read what is wanted from standard input, fetch it, and say in one line of JSON what came of it."""
    wanted = Wanted(**json.loads(sys.stdin.buffer.readline()))
    exit_after(sys.stdin.buffer.read, name="the gateway's end", exit_code=1)
    try:
        answer: dict[str, Any] = asdict(_fetch(wanted))
    except MadpoError as error:
        violations = [asdict(each) for each in getattr(error, "violations", ())]
        answer = {
            "error": type(error).__name__,
            "message": str(error),
            "violations": [[each["field"], each["description"]] for each in violations],
        }
    print(json.dumps(answer), flush=True)
    # Threads of the library may still wait for a hub that does not answer.
    os._exit(0)


if __name__ == "__main__":
    main()
