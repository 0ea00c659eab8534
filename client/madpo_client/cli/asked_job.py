"""The job that a command line asks for: a file, options and `--set`, put together into one spec."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer

from madpo.errors import InvalidArgumentError
from madpo.spelling import did_you_mean
from madpo.types import JobKind
from madpo_client.written import WHOLE_SPEC, as_written

if TYPE_CHECKING:
    from madpo.jobs.base import Spec
    from madpo_client.client import Client
    from madpo_client.job import JobHandle


@dataclass(frozen=True, slots=True)
class Setting:
    """One field that the command line gives."""

    field: str
    """With the parts it stands in: `training.max_steps`."""
    value: Any
    written: str
    """What the user calls it: the field, or the option that gives it."""


@dataclass(frozen=True, slots=True)
class AskedJob:
    """A job that is still to be created."""

    kind: JobKind
    spec: dict[str, Any]
    settings: tuple[Setting, ...]
    file: Path | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    """Fields that must be given, and the options to give them by."""

    def checked(self) -> Self:
        """It, with a spec that is right as far as can be told without a gateway.

        Raises:
            BadParameter: What must be given is missing.
            InvalidArgumentError: With one violation per wrong field, named as it was written.
        """
        from madpo_client.cli.spec_errors import checked_spec

        spec_type = spec_of(self.kind)
        present = {spec_type.renamed.get(given, given) for given in self.spec}
        missing = [option for name, option in self.required.items() if name not in present]
        if missing:
            raise typer.BadParameter(f"give {' and '.join(missing)}, or --spec")
        given = {name: value for name, value in self.spec.items() if value is not None}
        try:
            return replace(self, spec=checked_spec(spec_type, given))
        except InvalidArgumentError as error:
            raise as_written(error, self._written) from error

    def create(self, client: "Client", *, name: str, after: Sequence[str]) -> "JobHandle":
        """Create it.

        Raises:
            InvalidArgumentError: With one violation per wrong field, named as it was written.
        """
        try:
            return client.jobs.create(self.kind, self.spec, name=name, depends_on=after)
        except InvalidArgumentError as error:
            raise as_written(error, self._written) from error

    def _written(self, path: str) -> str:
        """A field of the spec as the user knows it: by the option, or with the line of the file, that gives it."""
        from madpo_client.cli.spec_values import place_in

        name = "" if path == WHOLE_SPEC else path
        if name and name.partition(".")[0] not in spec_of(self.kind).model_fields:
            return path  # of the request, not of the spec
        around = [setting for setting in self.settings if f"{name}.".startswith(f"{setting.field}.")]
        if around:
            nearest = max(around, key=lambda setting: len(setting.field))
            # Text stands for a whole reference, whose parts were not written; nor were the numbers of items.
            is_whole = isinstance(nearest.value, str if nearest.written == nearest.field else (str, list))
            return nearest.written + ("" if is_whole else name.removeprefix(nearest.field))
        if self.file is not None:
            place = place_in(self.file, name, renamed=spec_of(self.kind).renamed)
            return f"{name} in {place}" if name else str(self.file)
        return name or self.kind.value


def asked_job(
    kind: JobKind, settings: Iterable[Setting], *, file: Path | None = None, spec: Mapping[str, Any] | None = None
) -> AskedJob:
    """Put settings into a spec, that of a file; they have the last word.

    Raises:
        BadParameter: Two settings contradict each other, or one is of a part that the file gives as text.
        InvalidArgumentError: The file has fields that there are not.
    """
    from madpo_client.cli.spec_values import place_in

    given = tuple(settings)
    _refuse_contradictions(given)
    for name in _unknown(kind, spec or {}):
        assert file is not None
        place = place_in(file, name, renamed=spec_of(kind).renamed)
        raise InvalidArgumentError(f"{place}: {_no_field(kind, name)}")
    return AskedJob(kind, merged(spec or {}, given), given, file)


def merged(spec: Mapping[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """A copy of a spec with these fields set, whole parts before what stands in them."""
    result = deepcopy(dict(spec))
    for setting in sorted(settings, key=lambda each: each.field.count(".")):
        *parts, name = setting.field.split(".")
        place = result
        for part in parts:
            place[part] = {} if place.get(part) is None else place[part]
            place = place[part]
            if not isinstance(place, dict):
                raise typer.BadParameter(f"{setting.written} cannot be set in {part}: {place!r:.80}; set {part} itself")
        place[name] = deepcopy(setting.value)
    return result


def parse_settings(kind: JobKind, texts: Sequence[str]) -> Iterator[Setting]:
    """`--set` options. Raises BadParameter for what is no FIELD=VALUE, or a field that there is not."""
    for text in texts:
        field, equals, value = text.partition("=")
        if not field or not equals:
            raise typer.BadParameter(f"must be FIELD=VALUE, got {text!r}", param_hint="--set")
        for name in _unknown(kind, merged({}, [Setting(field, None, field)])):
            raise typer.BadParameter(_no_field(kind, name), param_hint="--set")
        yield Setting(field, read_value(kind, field, value), field)


def read_value(kind: JobKind, field: str, text: str) -> Any:
    """The value of a field as JSON or YAML; where an id is wanted, digits are text, since it may begin with them."""
    from madpo.jobs.base import reference_fields
    from madpo_client.cli.spec_values import parse_value

    spec = spec_of(kind)
    parts = field.split(".")
    name = ".".join([spec.renamed.get(parts[0], parts[0]), *parts[1:]])
    value = parse_value(text)
    is_reference = any(f"{name}.".startswith(f"{each}.") for each in reference_fields(spec))
    return text if is_reference and isinstance(value, (int, float)) and not name.endswith(".step") else value


def _refuse_contradictions(settings: Sequence[Setting]) -> None:
    for index, first in enumerate(settings):
        for second in settings[index + 1 :]:
            outer, inner = sorted((first, second), key=lambda each: len(each.field))
            if first.written == second.written:
                raise typer.BadParameter(f"{first.written} is given twice")
            is_same, is_inside = outer.field == inner.field, inner.field.startswith(f"{outer.field}.")
            if is_same or (is_inside and not isinstance(outer.value, Mapping)):
                raise typer.BadParameter(f"{first.written} and {second.written} contradict each other: give one")


def spec_of(kind: JobKind) -> "type[Spec]":
    """The spec of a kind, loaded when it is first asked for."""
    from madpo.jobs.registry import KINDS

    return KINDS[kind].spec


def _unknown(kind: JobKind, spec: Mapping[str, Any]) -> Iterator[str]:
    from madpo.jobs.fields import unknown_fields

    return unknown_fields(spec_of(kind), spec)


def _no_field(kind: JobKind, name: str) -> str:
    from madpo.jobs.fields import fields_of

    meant = did_you_mean(name, (field.name for field in fields_of(spec_of(kind))))
    listed = f"`madpo job fields {kind.value}` lists them"
    return f"{kind.value} has no field {name}{meant or ';'} {listed}"
