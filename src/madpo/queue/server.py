"""What the refusals of a Redis server mean, and what to do about them."""

import re
from collections.abc import Mapping

from redis import exceptions

from madpo.errors import FailedPreconditionError, MadpoError, OverloadedError, UnavailableError

_COMMAND = re.compile(r"'([^']+)' command")
WRONG_PASSWORD = ("NOAUTH", "WRONGPASS", "invalid password", "invalid username-password")
"""As servers of all versions say it."""

_MENDED_BY_WAITING = {
    "READONLY": "is a replica and takes no writes: waited for in a failover, else name the primary in redis_url",
    "MISCONF": "cannot write to its disk and takes no writes: make room there, or see its log",
    "NOREPLICAS": "takes no writes without enough replicas: see min-replicas-to-write",
    "LOADING": "is still loading its data",
    "MASTERDOWN": "is a replica that has lost its primary: name the primary in redis_url",
    "CLUSTERDOWN": "is part of a cluster that is down",
    "TRYAGAIN": "is moving its keys",
    "BUSY": "is busy with a script of somebody (SCRIPT KILL ends it)",
}
"""What a server refuses with for a while, and what to say of it."""
_OF_A_CLUSTER = ("MOVED", "ASK", "CROSSSLOT")
_CLASSES: Mapping[str, type[Exception]] = {
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "CLUSTERDOWN": exceptions.ClusterDownError,
    "TRYAGAIN": exceptions.TryAgainError,
    "MOVED": exceptions.MovedError,
    "ASK": exceptions.AskError,
    "CROSSSLOT": exceptions.ClusterCrossSlotError,
}


def is_wrong_password(error: Exception) -> bool:
    """Whether the server refuses who asks, not what is asked."""
    return isinstance(error, exceptions.AuthenticationError) or any(sign in str(error) for sign in WRONG_PASSWORD)


def refused_right(error: Exception, *, user: str) -> str | None:
    """What the access list of the server lacks, with the line to add; None for other errors.

    Args:
        error: Of redis-py.
        user: Who asked.
    """
    text = str(error)
    if not isinstance(error, exceptions.NoPermissionError) and "ACL failure in script" not in text:
        return None
    if command := _COMMAND.search(text):
        return f"user {user} may not run {command[1].upper()} (ACL SETUSER {user} +{command[1]})"
    return f"user {user} may not use the queue's keys (ACL SETUSER {user} ~NAMESPACE ~NAMESPACE:*, of redis_namespace)"


def explain(error: Exception, *, server: str, user: str) -> MadpoError | None:
    """One of our errors for one of redis-py's; None where it is better raised as it is.

    Whatever an operator or the server itself can mend is an UnavailableError or an OverloadedError, so that services
    wait for it and say why; only a server that this queue can never run on is refused.

    Args:
        error: What a command has ended with.
        server: Its name for people.
        user: Who asked.
    """
    if _is(error, "OOM"):
        return OverloadedError(f"{server} is out of memory: raise maxmemory", 5.0)
    if is_wrong_password(error):
        return UnavailableError(
            f"{server} refuses the password of user {user}: give the server's in redis_password or redis_url"
        )
    if lacking := refused_right(error, user=user):
        return UnavailableError(f"{server}: {lacking}")
    for code, said in _MENDED_BY_WAITING.items():
        if _is(error, code):
            return UnavailableError(f"{server} {said}")
    if any(_is(error, code) for code in _OF_A_CLUSTER):
        return FailedPreconditionError(f"{server} is part of a cluster: name a server outside of one in redis_url")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse, OSError)):
        return UnavailableError(f"{server} does not answer (see redis_url): {error}")
    return None


def is_elsewhere(error: Exception) -> bool:
    """Whether the name of the server may lead to another one by now, as behind a failover."""
    return any(_is(error, code) for code in ("READONLY", "MASTERDOWN"))


def _is(error: Exception, code: str) -> bool:
    """Whether the server said so, of a command or of one in a script: redis-py knows some codes and cuts them off."""
    if isinstance(error, _CLASSES.get(code, ())):
        return True
    return isinstance(error, exceptions.ResponseError) and bool(re.match(rf"(.* -)?{code}\b", str(error)))
