"""What is wrong with a spec, in the words of those who write one."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo_client.written import WHOLE_SPEC

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from madpo.jobs.base import Need, Spec
    from madpo.jobs.fields import SpecField

_OURS = "Value error, "
"""How pydantic begins the messages that are the specs' own."""


def checked_spec(spec: "type[Spec]", given: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a spec in its own words: new names, and references that are no text.

    References that only the gateway knows the ids of stay as they were written.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    from pydantic import ValidationError

    from madpo.jobs.base import map_references

    stand_ins = _StandIns()
    try:
        checked = spec.model_validate(map_references(spec, given, stand_ins.put))
        return map_references(spec, checked.model_dump(mode="json", exclude_unset=True), stand_ins.take_back)
    except ValidationError as error:
        # A reference that is given as text may be wrong in several of its parts.
        found = dict.fromkeys(_violations(spec, given, error))
        raise InvalidArgumentError.of(
            [FieldViolation(each.field or WHOLE_SPEC, each.description) for each in found]
        ) from error


class _StandIns:
    """Ids in place of names and the like, so that the rest of a spec can be checked before a gateway is asked."""

    def __init__(self) -> None:
        self._written: dict[str, Any] = {}

    def put(self, path: str, given: Any, need: "Need") -> Any:
        """A reference that the spec can read."""
        from madpo_client.lookup import needs_lookup

        if isinstance(given, str):
            return self._id(given, _sort(need), given) if needs_lookup(given) else given
        if not isinstance(given, Mapping):
            return given
        return {
            name: self._id(value, name.removesuffix("_id"), given)
            if name in ("job_id", "model_id", "dataset_id") and isinstance(value, str) and needs_lookup(value)
            else value
            for name, value in given.items()
        }

    def take_back(self, path: str, given: Any, need: "Need") -> Any:
        """What was written in its place."""
        found = given.values() if isinstance(given, Mapping) else [given]
        return next((self._written[each] for each in found if each in self._written), given)

    def _id(self, text: str, sort: str, written: Any) -> str:
        stand_in = f"{sort}-{len(self._written):032x}"
        self._written[stand_in] = written
        return stand_in


def _sort(need: "Need") -> str:
    from madpo.jobs.base import NeedsDataset, NeedsModel

    return "model" if isinstance(need, NeedsModel) else "dataset" if isinstance(need, NeedsDataset) else "job"


def _violations(spec: "type[Spec]", given: Mapping[str, Any], error: "ValidationError") -> Iterator[FieldViolation]:
    from madpo.jobs.base import wrong_fields
    from madpo.jobs.fields import fields_of, is_reference

    fields: dict[str, SpecField] = {}
    for each in fields_of(spec):
        fields[each.name] = each
        if each.part is not None and is_reference(each.part):
            fields |= {part.name: part for part in fields_of(each.part, prefix=f"{each.name}.")}
    for detail in wrong_fields(error):
        names = [str(name) for name in detail["loc"]]
        path, value = _written_at(spec, given, names)
        if path == names:
            value = detail["input"]
        field = fields.get(".".join(path)) or fields.get(".".join(path[:-1]))
        name = ".".join(path)
        yield FieldViolation(name, _describe(detail, field, value, is_item=field is not None and field.name != name))


def _written_at(spec: "type[Spec]", given: Mapping[str, Any], names: list[str]) -> tuple[list[str], Any]:
    """As much of the way to a field as was written down, and what was: text stands for a whole reference."""
    place: Any = given
    for index, name in enumerate(names):
        if isinstance(place, str):
            return names[:index], place
        if not isinstance(place, Mapping):
            break
        old = next((old for old, new in spec.renamed.items() if index == 0 and new == name and old in place), name)
        place = place.get(name, place.get(old))
    return names, place


def _describe(detail: "ErrorDetails", field: "SpecField | None", value: Any, *, is_item: bool) -> str:
    from madpo.jobs.catalogue import expected

    if detail["type"] == "missing":
        return "must be given"
    if detail["type"] == "extra_forbidden":
        return "there is no such field"
    if detail["type"] == "value_error" or field is None:
        text = detail["msg"].removeprefix(_OURS)
    else:
        text = f"must be {expected(field, is_item=is_item)}"
    return text if isinstance(value, Mapping) else f"{text}, got {value!r:.80}"
