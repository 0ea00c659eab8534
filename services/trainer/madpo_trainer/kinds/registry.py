"""All kinds of training that this trainer does.

To add one, write `madpo_trainer/kinds/<kind>.py` with its `TrainingKind`; every module is looked at.
"""

from collections.abc import Mapping
from types import MappingProxyType

from madpo.discovery import declared_by_name
from madpo.errors import InvalidArgumentError
from madpo.types import JobKind
from madpo_trainer.kinds.base import TrainingKind

TRAINING_KINDS: Mapping[JobKind, TrainingKind] = MappingProxyType(
    declared_by_name("madpo_trainer.kinds", TrainingKind, besides=["registry"])
)


def training_kind(name: JobKind) -> TrainingKind:
    """The kind of that name. Raises InvalidArgumentError for a job that is none of a trainer's."""
    if name not in TRAINING_KINDS:
        raise InvalidArgumentError(f"a trainer does not run {name} jobs; it runs {', '.join(TRAINING_KINDS)}")
    return TRAINING_KINDS[name]
