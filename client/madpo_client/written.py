"""What is wrong with a job, by the names its caller knows: a request calls a field by its whole path."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.types import JobKind

WHOLE_SPEC = "spec"
"""What a fault of no single field is of."""
_OF_REQUESTS = {"display_name": "name"}


def as_written(error: InvalidArgumentError, written: Callable[[str], str]) -> InvalidArgumentError:
    """The error with its fields named otherwise; one that names none stays as it is."""
    if not error.violations:
        return error
    return InvalidArgumentError.of([FieldViolation(written(each.field), each.description) for each in error.violations])


@contextmanager
def fields_of_spec(kind: JobKind) -> Iterator[None]:
    """Errors of a request for a job name a field as specs do: `training.max_steps`, of `spec.KIND.training.max_steps`.

    Raises:
        InvalidArgumentError: In place of the one that was raised.
    """
    whole = f"{WHOLE_SPEC}.{kind.value}"

    def field(path: str) -> str:
        return WHOLE_SPEC if path == whole else _OF_REQUESTS.get(path, path.removeprefix(f"{whole}."))

    with _renaming(field):
        yield


@contextmanager
def arguments(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name an argument where a field of the spec, or all of a part, is given by one that is called otherwise.

    Args:
        names: Of arguments, by field; parts behind what stands in them.

    Raises:
        InvalidArgumentError: In place of the one that was raised.
    """

    def argument(path: str) -> str:
        for field, name in names.items():
            if f"{path}.".startswith(f"{field}."):
                return name + path.removeprefix(field)
        return path

    with _renaming(argument):
        yield


@contextmanager
def _renaming(written: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        raise as_written(error, written) from error
