"""What a kind of job asks beyond its references."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from madpo.jobs.base import Spec
from madpo_gateway.checks.references import Findings


@dataclass(frozen=True, slots=True)
class SpecCheck:
    """A check of specs of one kind; the registry finds it in its module."""

    spec: type[Spec]
    look: Callable[[Any, Findings], None]
    """Given a spec and what its references lead to, adds what is wrong to the latter."""
