"""What all specs are made of: the base class, ids, and references to models, datasets and jobs.

A reference says on its field what it must lead to (`Annotated[ModelReference, NeedsModel(...)]`); what a job waits for,
what may not be deleted and what the gateway looks up follow from that, by `references`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.spelling import did_you_mean
from madpo.types import MOST_STEPS, AtMost, DatasetKind, JobKind

logger = logging.getLogger(__name__)

MODEL_ID_PATTERN = r"^model-[0-9a-f]{32}$"
DATASET_ID_PATTERN = r"^dataset-[0-9a-f]{32}$"
JOB_ID_PATTERN = r"^job-[0-9a-f]{32}$"

T = TypeVar("T")


def job_id_of(request_id: str) -> str:
    """The id of the job a request makes."""
    return "job-" + hashlib.sha256(request_id.encode()).hexdigest()[:32]


ModelId = Annotated[str, Field(pattern=MODEL_ID_PATTERN)]
DatasetId = Annotated[str, Field(pattern=DATASET_ID_PATTERN)]
JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]

MostTokens = Annotated[int, AtMost(16_777_216)]
"""So many tokens at most, of a row or of a forward pass."""


@cache
def _warn_once(spec: str, old: str, new: str) -> None:
    """Stored specs are read again and again; once says it."""
    logger.warning("%s is deprecated: write %s", old, new, extra={"spec": spec})


class Spec(BaseModel):
    """Base of all specs: immutable, unknown fields refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Names that fields had in the version before, and what they are called now. They are read, with a warning."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        if not cls.renamed or not isinstance(value, Mapping):
            return value
        fields = {name: given for name, given in value.items() if name not in cls.renamed}
        for old, new in cls.renamed.items():
            if value.get(old) is None:
                continue
            if fields.get(new) is not None:
                raise ValueError(f"{old} is the old name of {new}: give {new} alone")
            _warn_once(cls.__name__, old, new)
            fields[new] = value[old]
        return fields


class ModelReference(Spec):
    """A model by its id, or as the output of a job. As text: `MODEL_ID`, `JOB_ID` or `JOB_ID@STEP`."""

    model_id: ModelId | None = None
    """A stored model."""
    job_id: JobId | None = None
    """The job whose model is meant; it must succeed first."""
    step: Annotated[int | None, AtMost(MOST_STEPS)] = Field(default=None, ge=0)
    """With `job_id`: that checkpoint instead of the final model. It must exist already."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.startswith("job-"):
            return {"model_id": value}
        job_id, _, step = value.partition("@")
        return {"job_id": job_id, "step": step or None}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model_id is None) == (self.job_id is None):
            raise ValueError("give exactly one of model_id and job_id")
        if self.step is not None and self.job_id is None:
            raise ValueError("step needs job_id")
        return self

    @property
    def awaited_job_id(self) -> str | None:
        """The job that must succeed first. A named checkpoint exists already: nobody waits for the end of its job."""
        return self.job_id if self.step is None else None


class DatasetReference(Spec):
    """A dataset by its id, or as the output of a job. As text: `DATASET_ID` or `JOB_ID`."""

    dataset_id: DatasetId | None = None
    """A stored dataset."""
    job_id: JobId | None = None
    """The job whose dataset is meant; it must succeed first."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"job_id" if value.startswith("job-") else "dataset_id": value}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset_id is None) == (self.job_id is None):
            raise ValueError("give exactly one of dataset_id and job_id")
        return self

    @property
    def awaited_job_id(self) -> str | None:
        """The job that must succeed first."""
        return self.job_id

    def __str__(self) -> str:
        return self.dataset_id or self.job_id or ""


@dataclass(frozen=True, slots=True)
class NeedsModel:
    """On a field: a model of one of these kinds."""

    kinds: frozenset[str]
    is_served: bool = False
    """The reward service runs it, which has stored models only: no checkpoint will do."""


@dataclass(frozen=True, slots=True)
class NeedsDataset:
    """On a field: a dataset of one of these kinds."""

    kinds: frozenset[DatasetKind] = frozenset(DatasetKind)


@dataclass(frozen=True, slots=True)
class NeedsJobs:
    """On a field of job ids: jobs of this kind."""

    kind: JobKind


Need = NeedsModel | NeedsDataset | NeedsJobs

POLICY = frozenset({"causal_lm"})
REWARD = frozenset({"reward"})
ANY_MODEL = POLICY | REWARD


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference of a spec: where it stands in it, to what, and what it must lead to."""

    path: str
    """`margin.reward_model`; of several jobs `baseline_job_ids.0`."""
    target: ModelReference | DatasetReference | str
    """Text is a job's id."""
    need: Need

    @property
    def awaited_job_id(self) -> str | None:
        """The job that must succeed before the spec's."""
        return self.target if isinstance(self.target, str) else self.target.awaited_job_id


def references(spec: Spec, *, path: str = "") -> Iterator[Reference]:
    """What a spec refers to, in the order of its fields."""
    for name, field in type(spec).model_fields.items():
        value, place = getattr(spec, name), f"{path}{name}"
        need = next((note for note in field.metadata if isinstance(note, Need)), None)
        if value is None:
            continue
        if isinstance(need, NeedsJobs):
            yield from (Reference(f"{place}.{index}", job_id, need) for index, job_id in enumerate(value))
        elif need is not None:
            yield Reference(place, value, need)
        elif isinstance(value, Spec):
            yield from references(value, path=f"{place}.")


def map_references(
    spec: type[Spec], value: Mapping[str, Any], change: Callable[[str, Any, Need], Any], *, path: str = ""
) -> dict[str, Any]:
    """A copy of the JSON form of a spec, right or wrong, with all references in it changed.

    Args:
        spec: Whose form it is. Old names of fields are known.
        value: The form; each reference as it was written, as text or in its parts.
        change: Given the path of a reference, as of `Reference`, what was written, and what it must lead to; returns
            what shall stand there.
        path: Where the form stands, with a dot behind it.
    """
    result = dict(value)
    for name, given in value.items():
        info = spec.model_fields.get(spec.renamed.get(name, name))
        if info is None or given is None:
            continue
        place, part = f"{path}{name}", spec_part(info)
        need = next((note for note in info.metadata if isinstance(note, Need)), None)
        if isinstance(need, NeedsJobs):
            if isinstance(given, (list, tuple)):
                result[name] = [change(f"{place}.{index}", item, need) for index, item in enumerate(given)]
        elif need is not None:
            result[name] = change(place, given, need)
        elif part is not None and isinstance(given, Mapping):
            result[name] = map_references(part, given, change, path=f"{place}.")
    return result


def reference_fields(spec: type[Spec], *, path: str = "") -> Iterator[str]:
    """The names of the fields of a spec that refer to something: `margin.reward_model`."""
    for name, info in spec.model_fields.items():
        part = spec_part(info)
        if any(isinstance(note, Need) for note in info.metadata):
            yield f"{path}{name}"
        elif part is not None:
            yield from reference_fields(part, path=f"{path}{name}.")


def spec_part(info: FieldInfo) -> type[Spec] | None:
    """The part of a spec that a field holds, or the kind of reference it is."""
    options = (info.annotation, *get_args(info.annotation))
    return next((option for option in options if isinstance(option, type) and issubclass(option, Spec)), None)


def awaited_job_ids(spec: Spec) -> tuple[str, ...]:
    """Jobs whose outputs the spec uses, each once; they must succeed first."""
    ids = (reference.awaited_job_id for reference in references(spec))
    return tuple(dict.fromkeys(job_id for job_id in ids if job_id is not None))


def validate(schema: type[T], value: Any, *, path: str) -> T:
    """Check a value against a pydantic schema; wrong fields become violations under `path`.

    Raises:
        InvalidArgumentError: With one violation per wrong field.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        violations = [
            FieldViolation(".".join([path, *map(str, detail["loc"])]), _describe(detail, schema))
            for detail in wrong_fields(error)
        ]
        raise InvalidArgumentError.of(violations) from error


def wrong_fields(error: ValidationError) -> list[ErrorDetails]:
    """What pydantic found, without what follows from it: a list whose items are wrong is not too short as well."""
    found = error.errors(include_url=False)
    return [
        each
        for each in found
        if each["type"] != "too_short"
        or not any(other["loc"][:-1] == each["loc"] for other in found if other is not each)
    ]


def _describe(detail: ErrorDetails, schema: type[Any]) -> str:
    if detail["type"] == "extra_forbidden":
        *place, name = detail["loc"]
        known = _fields_at(schema, place)
        return f"there is no such field{did_you_mean(str(name), known) or ';'} there are {', '.join(known)}"
    text, value = detail["msg"].removeprefix("Value error, "), detail["input"]
    return text if isinstance(value, dict) else f"{text}, got {value!r:.80}"


def _fields_at(schema: type[Any], place: Sequence[str | int]) -> list[str]:
    """The fields of the part of a spec that a way through its fields leads to."""
    part: type[Any] | None = schema
    for name in place:
        info = None if part is None else part.model_fields.get(str(name))
        part = None if info is None else spec_part(info)
    return sorted([] if part is None else part.model_fields)
