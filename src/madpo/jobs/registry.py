"""All kinds of jobs.

To add one, write `madpo/jobs/<kind>.py` with its spec and its `Kind`; every module is looked at.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from madpo.discovery import declared_by_name
from madpo.errors import InvalidArgumentError
from madpo.jobs.base import Spec, validate
from madpo.jobs.kind import Kind, Queue
from madpo.spelling import did_you_mean
from madpo.types import JobKind

_FOUND = declared_by_name("madpo.jobs", Kind, besides=["catalogue", "registry"])

KINDS: Mapping[JobKind, Kind] = MappingProxyType({name: _FOUND[name] for name in JobKind})
QUEUES: tuple[Queue, ...] = tuple(sorted({kind.queue for kind in KINDS.values()}))


def kind_named(name: str) -> Kind:
    """The kind of that name. Raises InvalidArgumentError listing those there are."""
    try:
        return KINDS[JobKind(name)]
    except ValueError:
        meant = did_you_mean(name, KINDS)
        raise InvalidArgumentError(f"there is no job kind {name!r}{meant or ';'} kinds: {', '.join(KINDS)}") from None


def kind_of(spec: Spec) -> Kind:
    """The kind a spec belongs to."""
    return next(kind for kind in KINDS.values() if type(spec) is kind.spec)


def parse_spec(kind: JobKind, value: Any, *, path: str = "spec") -> Spec:
    """Check the JSON form of a spec.

    Args:
        kind: Which spec it is.
        value: The JSON object.
        path: Prefix of the field names in violations.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    return validate(KINDS[kind].spec, value, path=f"{path}.{kind.value}")
