"""Every number that a job may be asked for has a least and a most, and none is NaN or infinite."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import Spec
from madpo.jobs.bounds import require_bounds
from madpo.jobs.registry import KINDS, parse_spec
from madpo.losses.registry import METHODS, parse_params
from madpo.types import JobKind

MODEL, DATASET, JOB = "model-" + "1" * 32, "dataset-" + "2" * 32, "job-" + "3" * 32
GIVEN = {"margin": {"reward_model": MODEL}, "judge": {"name": "gpt", "against_chosen": True}}
"""Of parts of specs, what they need."""
ASKED: dict[JobKind, dict[str, Any]] = {
    JobKind.SUPERVISED_TRAINING: {"model": MODEL, "dataset": DATASET},
    JobKind.REWARD_TRAINING: {"model": MODEL, "dataset": DATASET},
    JobKind.POLICY_TRAINING: {"model": MODEL, "dataset": DATASET},
    JobKind.EVALUATION: {"model": MODEL, "prompt_dataset": DATASET},
    JobKind.CALIBRATION: {"eval_dataset": DATASET},
    JobKind.DATASET_CHECK: {"dataset": DATASET, "model": MODEL},
    JobKind.SAMPLING: {
        "model": MODEL,
        "prompt_dataset": DATASET,
        "reward_model": MODEL,
        "sampling": {"samples_per_prompt": 2},
        "mixed_dataset": DATASET,
    },
    JobKind.SCORING: {"dataset": DATASET, "reward_model": MODEL},
}
_LEAST, _MOST = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
Place = tuple[str, ...]
SCHEMAS = {**{kind.name: kind.spec for kind in KINDS.values()}, **{name: each.config for name, each in METHODS.items()}}


def leaves(schema: Mapping[str, Any], root: Mapping[str, Any], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every number and list of a JSON schema, with its place; `[]` stands for an item."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for option in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from leaves(option, root, place)
    if schema.get("type") in ("integer", "number", "array"):
        yield place, schema
    if "items" in schema:
        yield from leaves(schema["items"], root, (*place, "[]"))
    for name, part in schema.get("properties", {}).items():
        yield from leaves(part, root, (*place, name))
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from leaves(schema["additionalProperties"], root, (*place, "{}"))


def leaves_of(model: type[BaseModel]) -> list[tuple[Place, Any]]:
    schema = model.model_json_schema()
    return list(leaves(schema, schema))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_number_and_every_list_has_a_bound(name: str) -> None:
    open_ended = [
        ".".join(place)
        for place, schema in leaves_of(SCHEMAS[name])
        if ("maxItems" not in schema if schema["type"] == "array" else not (_LEAST & {*schema} and _MOST & {*schema}))
    ]
    assert not open_ended, "give each of these an AtMost, and a least value by Field"


def test_there_is_something_to_look_at() -> None:
    places = {".".join(place) for place, _ in leaves_of(KINDS[JobKind.POLICY_TRAINING].spec)}
    assert {"training.epochs", "training.lora.rank", "training.lora.target_modules", "model.step"} <= places
    assert {("beta",), ("tau",), ("tau", "quantile")} <= {place for place, _ in leaves_of(METHODS["madpo"].config)}


def asked(kind: JobKind, place: Place, value: Any) -> dict[str, Any]:
    """A spec of that kind with a value at a place."""
    spec: dict[str, Any] = {**ASKED[kind]}
    part = spec
    for name in place[:-1]:
        given = GIVEN.get(name, {"job_id": JOB} if place[-1] == "step" else {})
        part[name] = {**given, **(part[name] if isinstance(part.get(name), dict) else {})}
        part = part[name]
    part[place[-1]] = value
    if "training" in spec and {"eval_every_steps", "early_stopping_patience"} & spec["training"].keys():
        spec["eval_dataset"] = DATASET
        spec["training"].setdefault("eval_every_steps", 1)
    if place[-1] == "step" and place[0] == "reference":
        spec.setdefault("eval_dataset", DATASET)
    return spec


def numbers() -> Iterator[Any]:
    for kind in KINDS.values():
        for place, schema in leaves_of(kind.spec):
            if schema["type"] != "array" and "[]" not in place:
                yield pytest.param(kind.name, place, schema, id=f"{kind.name}.{'.'.join(place)}")


def refused(kind: JobKind, spec: Mapping[str, Any]) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        require_bounds(parse_spec(kind, spec), path=f"spec.{kind}")
    return str(caught.value)


@pytest.mark.parametrize(("kind", "place", "schema"), numbers())
def test_the_most_is_taken_and_more_is_refused_by_name(kind: JobKind, place: Place, schema: Mapping[str, Any]) -> None:
    field = f"spec.{kind}.{'.'.join(place)}"
    if "maximum" in schema:
        most = parse_spec(kind, asked(kind, place, schema["maximum"]))
        require_bounds(most, path=f"spec.{kind}")
    more = 10**300 if schema["type"] == "integer" else 1e308
    assert field in refused(kind, asked(kind, place, more))
    for none in (math.nan, math.inf, -math.inf, "nan", "Infinity"):
        assert place[0] in refused(kind, asked(kind, place, none))


@pytest.mark.parametrize("name", METHODS)
def test_parameters_of_methods_have_bounds_too(name: str) -> None:
    def spec(given: Mapping[str, Any]) -> Spec:
        return parse_spec(JobKind.POLICY_TRAINING, {**ASKED[JobKind.POLICY_TRAINING], "method": {"name": name} | given})

    require_bounds(spec({}), path="spec")
    for place, schema in leaves_of(METHODS[name].config):
        if len(place) > 1:
            continue
        for more in (10**300 if schema["type"] == "integer" else 1e308, math.nan, math.inf, "NaN", "Infinity"):
            with pytest.raises(InvalidArgumentError, match=rf"spec\.method\.params\.{place[0]}"):
                require_bounds(spec({"params": {place[0]: more}}), path="spec")


def test_lists_and_all_that_is_too_high_are_named_at_once() -> None:
    spec = {
        **ASKED[JobKind.EVALUATION],
        "sampling": {"temperatures": [1.0] * 65, "max_new_tokens": 2**31},
        "metrics": ["words"] * 101,
    }
    with pytest.raises(InvalidArgumentError) as caught:
        require_bounds(parse_spec(JobKind.EVALUATION, spec), path="spec")
    assert {each.field: each.description for each in caught.value.violations} == {
        "spec.sampling.temperatures": "must be at most 64, got 65 of them",
        "spec.sampling.max_new_tokens": "must be at most 1,048,576, got 2147483648",
        "spec.metrics": "must be at most 100, got 101 of them",
    }


def test_what_was_stored_under_higher_bounds_is_still_read() -> None:
    spec = asked(JobKind.POLICY_TRAINING, ("training", "epochs"), 1e308)
    assert parse_spec(JobKind.POLICY_TRAINING, spec).training.epochs == 1e308  # type: ignore[attr-defined]
    assert parse_params("madpo", {"beta": 1e308}).beta == 1e308  # type: ignore[attr-defined]
