"""What a new job may ask for at most, over all fields of its spec and all parameters of its method.

Asked of new jobs alone: one that was stored under higher bounds is listed, read, resumed and run as it is.
"""

from collections.abc import Iterator

from pydantic import BaseModel

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.jobs.base import Spec
from madpo.jobs.methods import PreferenceMethod
from madpo.losses.registry import parse_params
from madpo.types import AtMost


def require_bounds(spec: Spec, *, path: str) -> None:
    """Raises InvalidArgumentError with one violation per value that is too high, `<path>.training.epochs`."""
    if violations := list(_exceeded(spec, path)):
        raise InvalidArgumentError.of(violations)


def _exceeded(model: BaseModel, path: str) -> Iterator[FieldViolation]:
    for name, field in type(model).model_fields.items():
        value, place = getattr(model, name), f"{path}.{name}"
        if isinstance(value, PreferenceMethod):
            yield from _exceeded(parse_params(value.name, value.params, path=place), f"{place}.params")
        elif isinstance(value, BaseModel):
            yield from _exceeded(value, place)
        bound = next((note for note in field.metadata if isinstance(note, AtMost)), None)
        if bound is not None and not bound.allows(value):
            got = f"{len(value)} of them" if isinstance(value, tuple) else f"{value!r:.80}"
            yield FieldViolation(place, f"must be at most {bound}, got {got}")
