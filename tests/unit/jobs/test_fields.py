"""The flat list of a spec's fields, and the names that are none of them."""

import pytest

from madpo.jobs.base import ModelReference, Spec
from madpo.jobs.fields import REQUIRED, SpecField, fields_of, is_reference, unknown_fields
from madpo.jobs.registry import KINDS
from madpo.types import JobKind

SPECS = [kind.spec for kind in KINDS.values()]


def listed(kind: JobKind) -> dict[str, SpecField]:
    return {field.name: field for field in fields_of(KINDS[kind].spec)}


@pytest.mark.parametrize("spec", [*SPECS, ModelReference], ids=lambda spec: spec.__name__)
def test_every_field_says_what_it_means(spec: type[Spec]) -> None:
    parts = {field.part for field in fields_of(spec) if field.part is not None}
    silent = [field.name for each in (spec, *parts) for field in fields_of(each) if not field.description]
    assert not silent, "write a docstring under each of these fields"


def test_fields_of_parts_stand_behind_the_part_under_its_name() -> None:
    names = [*listed(JobKind.SUPERVISED_TRAINING)]

    assert names[:5] == ["model", "dataset", "eval_dataset", "training", "training.epochs"]
    optimizer = names.index("training.optimizer")
    assert names[optimizer + 1] == "training.optimizer.learning_rate"
    assert len(names) == len(set(names))


def test_a_reference_is_one_field_that_says_what_it_leads_to() -> None:
    fields = listed(JobKind.POLICY_TRAINING)

    assert (fields["model"].allowed, fields["model"].default) == ("model (causal_lm)", REQUIRED)
    assert fields["eval_dataset"].allowed == "dataset (preference, list) or null"
    assert listed(JobKind.EVALUATION)["prompt_dataset"].allowed == "dataset"
    assert "model.model_id" not in fields
    assert fields["model"].part is not None
    assert is_reference(fields["model"].part)


@pytest.mark.parametrize(
    ("kind", "name", "allowed", "default"),
    [
        (JobKind.POLICY_TRAINING, "training.epochs", "number in (0, 10000]", "1.0"),
        (JobKind.POLICY_TRAINING, "training.max_steps", "integer in [1, 10000000] or null", "null"),
        (JobKind.POLICY_TRAINING, "training.seed", "integer in [0, 2147483648)", "0"),
        (JobKind.POLICY_TRAINING, "training.precision", "auto, fp32 or bf16", '"auto"'),
        (JobKind.POLICY_TRAINING, "training.compile", "true or false", "false"),
        (JobKind.POLICY_TRAINING, "training.optimizer", "OptimizerParameters", "{}"),
        (JobKind.POLICY_TRAINING, "training.optimizer.beta1", "number in [0, 1)", "0.9"),
        (JobKind.POLICY_TRAINING, "training.lora", "LoraParameters or null", "null"),
        (JobKind.POLICY_TRAINING, "margin.outage_policy", "pause, neutral or fail", '"pause"'),
        (JobKind.POLICY_TRAINING, "margin.lookahead_batches", "integer in [1, 1024]", "32"),
        (JobKind.POLICY_TRAINING, "margin.temperature", 'number in (0, 1000000] or "fit"', "1.0"),
        (JobKind.POLICY_TRAINING, "method.params", "mapping", "{}"),
        (JobKind.EVALUATION, "baseline_job_ids", "list of JOB_ID, at most 100", "[]"),
        (JobKind.EVALUATION, "sampling.temperatures", "list of number in [0, 10], at most 64", "[1.0]"),
    ],
)
def test_types_ranges_and_defaults_are_those_of_the_spec(kind: JobKind, name: str, allowed: str, default: str) -> None:
    assert (listed(kind)[name].allowed, listed(kind)[name].default) == (allowed, default)


@pytest.mark.parametrize(
    ("value", "unknown"),
    [
        ({"model": "MODEL", "training": {"epochs": 1, "optimizer": {"eps": 1}}}, []),
        ({"model": {"job_id": "JOB", "step": 3}, "margin": None}, []),
        ({"dataset_id": "an old name"}, []),
        ({"method": {"params": {"tau": {"quantile": 0.9}, "anything": 1}}}, []),
        ({"modle": "MODEL"}, ["modle"]),
        ({"training": {"epoch": 1, "optimizer": {"lr": 1}}}, ["training.epoch", "training.optimizer.lr"]),
        ({"training": {"epochs": {"min": 1}}}, ["training.epochs.min"]),
        ({"method": {"tau": 1}}, ["method.tau"]),
        ({"model": {"id": "MODEL"}}, ["model.id"]),
    ],
)
def test_names_that_are_no_fields_are_found_and_free_parts_let_through(value: dict, unknown: list[str]) -> None:
    assert [*unknown_fields(KINDS[JobKind.POLICY_TRAINING].spec, value)] == unknown
