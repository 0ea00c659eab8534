"""Options that give fields of a job's spec. What may be given, what it means and its default are the spec's to say."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from madpo.types import JobKind
from madpo_client.cli.arguments import complete_datasets, complete_jobs, complete_methods, complete_models
from madpo_client.cli.asked_job import AskedJob, Setting, asked_job, parse_settings, read_value, spec_of
from madpo_client.deprecation import renamed

if TYPE_CHECKING:
    from madpo.jobs.fields import SpecField

SPEC_HELP = "YAML or JSON file with the whole spec, which only --set changes; - reads standard input."
SET_HELP = "Any field of the spec; repeatable."

_COMPLETIONS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("model", "reference", "reward_model", "margin.reward_model"), complete_models),
    **dict.fromkeys(("dataset", "eval_dataset", "prompt_dataset"), complete_datasets),
    "baseline_job_ids": complete_jobs,
    "method.name": complete_methods,
}
"""What a shell offers for a field."""


@dataclass(frozen=True, slots=True)
class FieldOption:
    """An option for a field of a spec."""

    name: str
    """`--learning-rate`."""
    field: str
    """`training.optimizer.learning_rate`."""
    gives: Literal["value", "item", "entry"] = "value"
    """The field; an item of the list that it is; or NAME=VALUE of the mapping that it is. The last two repeat."""
    help: str = ""
    """In place of what the field says."""
    shows_default: bool = True
    """Whether help says the default of the field, which counts for nothing while its part is null."""
    old_name: str | None = None
    is_hidden: bool = False

    def parameters(self) -> Iterator[inspect.Parameter]:
        """What a command takes for it. The values are text, which the spec judges."""
        option = typer.Option(self.name, hidden=self.is_hidden, autocompletion=_COMPLETIONS.get(self.field))
        yield _parameter(list[str] if self.gives != "value" else str, option)
        if self.old_name is not None:
            yield _parameter(str, typer.Option(self.old_name, hidden=True))

    def settings(self, kind: JobKind, given: Mapping[str, Any]) -> Iterator[Setting]:
        """The fields of a spec that it gives. Raises BadParameter for an entry that is no NAME=VALUE."""
        value = given[_key(self.name)]
        if self.old_name is not None:
            value = renamed(self.old_name, given[_key(self.old_name)], self.name, value)
        if self.gives == "entry":
            yield from (self._entry(text) for text in value or ())
        elif self.gives == "item" and value:
            yield Setting(self.field, [read_value(kind, self.field, item) for item in value], self.name)
        elif self.gives == "value" and value is not None:
            yield Setting(self.field, read_value(kind, self.field, value), self.name)

    def _entry(self, text: str) -> Setting:
        from madpo_client.cli.spec_values import parse_value

        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{self.name} {text}: write NAME=VALUE")
        return Setting(f"{self.field}.{name}", parse_value(value), f"{self.name} {name}")


def spec_command(
    app: typer.Typer,
    name: str,
    kind: JobKind,
    options: Sequence[FieldOption],
    *,
    help: str | None = None,  # noqa: A002
) -> Callable[..., Any]:
    """Make a function a command with these options, `--set` and `--spec`; it gets the job they describe as `job`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "job"]

        @wraps(command)
        def run(**given: Any) -> None:
            rest = {parameter.name: given[parameter.name] for parameter in own}
            command(job=_job(kind, options, given), **rest)

        fields = [parameter for option in options for parameter in option.parameters()]
        taken = [
            *fields,
            _set_parameter(kind),
            _parameter(Path, typer.Option("--spec", metavar="FILE", help=SPEC_HELP)),
            *own,
        ]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in taken]
        )
        return app.command(name, cls=command_class(kind, options, epilog=_epilog), help=help)(run)

    return decorate


def _job(kind: JobKind, options: Sequence[FieldOption], given: Mapping[str, Any]) -> AskedJob:
    """The job that a command line describes. Raises BadParameter for options that do not go together."""
    from madpo_client.cli.spec_values import read_spec

    settings = [setting for option in options for setting in option.settings(kind, given)]
    sets, file = parse_settings(kind, given["set"] or ()), given["spec"]
    if file is None:
        return replace(asked_job(kind, [*settings, *sets]), required=_required(kind, options))
    if settings:
        raise typer.BadParameter("--spec says everything about the job; beside it, fields are given by --set alone")
    return asked_job(kind, sets, file=file, spec=read_spec(file))


def _required(kind: JobKind, options: Sequence[FieldOption]) -> dict[str, str]:
    fields = spec_of(kind).model_fields
    return {
        option.field: option.name for option in options if option.field in fields and fields[option.field].is_required()
    }


def complete_fields(kind: JobKind, incomplete: str) -> list[tuple[str, str]]:
    """What a shell offers behind `--set`: names of fields, and what they mean."""
    from madpo.jobs.fields import fields_of, is_reference

    return [
        (f"{field.name}=", field.description.partition(". ")[0])
        for field in fields_of(spec_of(kind))
        if field.name.startswith(incomplete) and (field.part is None or is_reference(field.part))
    ]


def _set_parameter(kind: JobKind) -> inspect.Parameter:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        return complete_fields(kind, incomplete)

    return _parameter(list[str], typer.Option("--set", metavar="FIELD=VALUE", help=SET_HELP, autocompletion=complete))


def _parameter(sort: Any, option: Any) -> inspect.Parameter:
    """An option that need not be given, as a parameter of a function."""
    return inspect.Parameter(
        _key(option.default), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[sort | None, option]
    )


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def command_class(
    kind: JobKind, options: Sequence[FieldOption], *, epilog: Callable[[JobKind], str] | None = None
) -> type[TyperCommand]:
    """A command whose options are described by their fields; the spec is loaded when help is asked for."""

    class SpecCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            if epilog is not None:
                self.epilog = epilog(kind)
            _describe(self.params, kind, options, has_markup=self.rich_markup_mode == "rich")
            super().format_help(ctx, formatter)

    return SpecCommand


def _epilog(kind: JobKind) -> str:
    from madpo.jobs.base import DatasetReference, ModelReference
    from madpo.jobs.catalogue import forms_of_reference

    model, dataset = forms_of_reference(ModelReference), forms_of_reference(DatasetReference)
    return (
        f"A model is given as {model}, a dataset as {dataset}; the beginning of an id, a name, or @last for the newest "
        "will do. "
        f"`madpo job fields {kind.value}` lists all fields of the spec."
    )


def _describe(parameters: Sequence[Any], kind: JobKind, options: Sequence[FieldOption], *, has_markup: bool) -> None:
    """Give options the type, the meaning and the default of their fields."""
    from rich.markup import escape

    from madpo.jobs.fields import fields_of

    fields = {field.name: field for field in fields_of(spec_of(kind))}
    named = {_key(option.name): option for option in options if not option.is_hidden}
    for parameter in parameters:
        if parameter.name in named:
            option = named[parameter.name]
            parameter.metavar = _metavar(option, fields[option.field])
            meaning = _meaning(option, fields[option.field])
            parameter.help = escape(meaning) if has_markup else meaning


def _metavar(option: FieldOption, field: "SpecField") -> str:
    if option.gives == "entry":
        return "NAME=VALUE"
    return field.allowed.removeprefix("list of ").partition(", at most ")[0].removesuffix(" or null")


def _meaning(option: FieldOption, field: "SpecField") -> str:
    """What the option or its field says, and the default unless that is nothing."""
    repeats = "" if option.gives == "value" else " Repeatable."
    if field.is_required:
        note = " [required]"
    else:
        default = field.default.strip('"')
        note = "" if default in ("null", "[]", "{}") or not option.shows_default else f" [default: {default}]"
    return f"{option.help or field.description}{repeats}{note}"
