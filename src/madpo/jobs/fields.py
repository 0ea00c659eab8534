"""The fields of a job's spec, as people read and write them: `madpo job fields`, `--set`, and `docs/jobs.md`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from madpo.jobs.base import (
    DATASET_ID_PATTERN,
    JOB_ID_PATTERN,
    MODEL_ID_PATTERN,
    DatasetReference,
    ModelReference,
    NeedsDataset,
    NeedsModel,
    Spec,
    spec_part,
)
from madpo.types import DatasetKind

REQUIRED = "required"
"""Stands where the default of a field would."""

_IDS = {MODEL_ID_PATTERN: "MODEL_ID", DATASET_ID_PATTERN: "DATASET_ID", JOB_ID_PATTERN: "JOB_ID"}
_TYPES = {"string": "text", "boolean": "true or false", "object": "mapping", "null": "null"}
_LOWEST = {"minimum": ("[", ">="), "exclusiveMinimum": ("(", ">")}
_HIGHEST = {"maximum": ("]", "<="), "exclusiveMaximum": (")", "<")}


@dataclass(frozen=True, slots=True)
class SpecField:
    """One field of a spec."""

    name: str
    """With the parts it stands in: `training.optimizer.weight_decay`."""
    allowed: str
    """What may be given: `number >= 0`, `fp32 or bf16`, `dataset (preference)`, or the name of a part."""
    default: str
    """As JSON; of a part `{}`: nothing of it is given."""
    description: str
    owner: type[Spec]
    """The spec, or the part of one, that declares it."""
    part: type[Spec] | None
    """The part it holds, or the kind of reference it is."""
    is_required: bool
    """Whether a spec without it is refused. What only a part requires that may be left out is not."""


def fields_of(spec: type[Spec], *, prefix: str = "", is_needed: bool = True) -> Iterator[SpecField]:
    """All fields of a spec in the order of their declaration; behind a part its own. A reference is one field."""
    properties = spec.model_json_schema()["properties"]
    for name, info in spec.model_fields.items():
        part = spec_part(info)
        yield SpecField(
            name=f"{prefix}{name}",
            allowed=_reference_type(info, part) or _type(properties[name]),
            default=_default(info, properties[name]),
            description=" ".join((info.description or "").split()),
            owner=spec,
            part=part,
            is_required=is_needed and info.is_required(),
        )
        if part is not None and not is_reference(part):
            yield from fields_of(part, prefix=f"{prefix}{name}.", is_needed=is_needed and info.is_required())


def is_reference(part: type[Spec]) -> bool:
    """Whether it stands for a model or a dataset, and may be written as text."""
    return issubclass(part, (ModelReference, DatasetReference))


def unknown_fields(spec: type[Spec] | None, value: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """The names in the JSON form of a spec that are no fields of it. Old names of fields are known."""
    for name, given in value.items():
        info = None if spec is None else spec.model_fields.get(spec.renamed.get(name, name))
        if info is None:
            yield f"{prefix}{name}"
        elif isinstance(given, Mapping) and not _is_free(info):
            yield from unknown_fields(spec_part(info), given, prefix=f"{prefix}{name}.")


def _default(info: FieldInfo, schema: Mapping[str, Any]) -> str:
    if info.is_required():
        return REQUIRED
    return "{}" if isinstance(info.default, Spec) else json.dumps(schema.get("default", {}))


def _is_free(info: FieldInfo) -> bool:
    """Whether the field is a mapping of any names."""
    return dict in (info.annotation, getattr(info.annotation, "__origin__", None))


def _reference_type(info: FieldInfo, part: type[Spec] | None) -> str:
    """`model (reward) or null`; of a field that is no reference nothing."""
    if part is None or not is_reference(part):
        return ""
    noun, kinds = ("model" if issubclass(part, ModelReference) else "dataset"), _kinds(info)
    return f"{noun}{f' ({kinds})' if kinds else ''}{'' if info.is_required() else ' or null'}"


def _kinds(info: FieldInfo) -> str:
    """The kinds of model or dataset that are taken; nothing where all are."""
    for note in info.metadata:
        if isinstance(note, NeedsModel):
            return ", ".join(sorted(note.kinds))
        if isinstance(note, NeedsDataset) and note.kinds != frozenset(DatasetKind):
            return ", ".join(kind.value for kind in DatasetKind if kind in note.kinds)
    return ""


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        *others, last = schema["enum"]
        return f"{', '.join(others)} or {last}"
    if schema["type"] == "array":
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {_type(schema['items'])}{most}"
    if "pattern" in schema:
        return _IDS[schema["pattern"]]
    return f"{_TYPES.get(schema['type'], schema['type'])}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    """` in [0, 1)` between two bounds, ` > 0` with one."""
    low = next(((*signs, schema[key]) for key, signs in _LOWEST.items() if key in schema), None)
    high = next(((*signs, schema[key]) for key, signs in _HIGHEST.items() if key in schema), None)
    if low is not None and high is not None:
        return f" in {low[0]}{low[2]}, {high[2]}{high[0]}"
    bound = low or high
    return f" {bound[1]} {bound[2]}" if bound is not None else ""
