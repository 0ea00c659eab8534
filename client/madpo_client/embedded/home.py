"""The home of a stack: closed to others, whole, and of a version that this one reads."""

import json
import os
import stat
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from madpo.errors import FailedPreconditionError

UMASK = 0o077
"""Of everything a stack writes: tokens, rows and models are nobody else's."""

_FORMAT = 1
"""Of the home; raised when an older madpo could no longer run what a newer one left."""
_VERSION = "version.json"
_SECRETS = ("client_token", "reward_token", "redis_password")
_SHORTEST_SECRET = 16
_DIRECTORIES = ("store", "redis", "work", "cache", "cache/reward", "logs", "secrets")


def close_home(home: Path) -> list[str]:
    """Make the home, readable by its owner alone; says what was done to one that others could read.

    Raises:
        FailedPreconditionError: It is no directory, is somebody else's, or holds what is not of a stack and is open to
            others: closing that could be what nobody wants.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FailedPreconditionError(f"{home} is no directory: give another home (--home or MADPO_HOME)") from error
    found = home.stat()
    if found.st_uid != os.geteuid():
        raise FailedPreconditionError(f"{home} belongs to another user: give another home (--home or MADPO_HOME)")
    mode = stat.S_IMODE(found.st_mode)
    if not mode & UMASK:
        return []
    if not _is_ours(home):
        raise FailedPreconditionError(
            f"{home} is open to other users (mode {mode:04o}) and holds what is not of a stack: close it by "
            f"`chmod 700 {home}`, or give an empty directory (--home or MADPO_HOME)"
        )
    home.chmod(0o700)
    return [f"{home} was open to other users (mode {mode:04o}): closed"]


def check_home(home: Path) -> list[str]:
    """Make what is missing of a closed home; says what of an earlier stack was missing or damaged, and what was done.

    Raises:
        FailedPreconditionError: A newer madpo left it, or something is in the way of a directory.
    """
    is_used = (home / "secrets").is_dir()
    notices = list(_check_version(home))
    for name in _DIRECTORIES:
        directory = home / name
        if is_used and name in ("store", "redis") and not directory.exists():
            notices.append(_MISSING[name].format(directory))
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise FailedPreconditionError(f"{directory} is in the way of a directory: move it elsewhere") from error
    for name in _SECRETS:
        path = home / "secrets" / name
        if path.exists() and len(path.read_text().strip()) < _SHORTEST_SECRET:
            path.unlink()
            notices.append(f"{path} was cut short: another is made, and programs that hold the old one need it")
    return notices


_MISSING = {
    "store": "{0} is missing: an empty one is made. What was stored is gone, and jobs that need it fail (a copy of it "
    "can be put there while the stack is down)",
    "redis": "{0} is missing: the queue begins empty, and the jobs come back from the store",
}


def _is_ours(home: Path) -> bool:
    """Whether a directory was a home before, or holds nothing else than a home may."""
    return (home / "secrets" / _SECRETS[0]).exists() or {each.name for each in home.iterdir()} <= {
        "config.toml",
        "logs",
    }


def _check_version(home: Path) -> Iterator[str]:
    path, ours = home / _VERSION, version("madpo")
    try:
        left = json.loads(path.read_text())
        left_format, left_version = int(left["format"]), str(left["madpo"])
    except FileNotFoundError:
        left_format, left_version = _FORMAT, ours
    except (ValueError, TypeError, KeyError):
        yield f"{path} could not be read, and is written anew"
        left_format, left_version = _FORMAT, ours
    if left_format > _FORMAT:
        raise FailedPreconditionError(
            f"{home} was left by madpo {left_version} in format {left_format}, and this is {ours}, which reads up to "
            f"{_FORMAT}: install that version, or give another home (--home or MADPO_HOME)"
        )
    if left_version != ours:
        yield f"{home} was left by madpo {left_version}; this is {ours}"
    path.write_text(json.dumps({"format": _FORMAT, "madpo": ours}) + "\n")
