"""All kinds of jobs that this evaluator does.

To add one, write `madpo_evaluator/kinds/<kind>.py` with its `EvaluatorKind`; every module is looked at.
"""

from collections.abc import Mapping
from types import MappingProxyType

from madpo.discovery import declared_by_name
from madpo.errors import InvalidArgumentError
from madpo.types import JobKind
from madpo_evaluator.kinds.base import EvaluatorKind

EVALUATOR_KINDS: Mapping[JobKind, EvaluatorKind] = MappingProxyType(
    declared_by_name("madpo_evaluator.kinds", EvaluatorKind, besides=["registry"])
)


def evaluator_kind(name: JobKind) -> EvaluatorKind:
    """The kind of that name. Raises InvalidArgumentError for a job that is none of an evaluator's."""
    if name not in EVALUATOR_KINDS:
        raise InvalidArgumentError(f"an evaluator does not run {name} jobs; it runs {', '.join(EVALUATOR_KINDS)}")
    return EVALUATOR_KINDS[name]
