"""The typed specs and their form on the wire say the same."""

import pytest
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel, ValidationError

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import DatasetReference, ModelReference, _warn_once, awaited_job_ids, validate
from madpo.jobs.policy_training import PolicyTrainingSpec
from madpo.jobs.registry import KINDS, parse_spec
from madpo.jobs.sampling import SamplingParameters, SamplingSpec
from madpo.jobs.training import LoraParameters
from madpo.rpc import convert
from madpo.types import Job, JobKind, JobState
from madpo.v1 import job_service_pb2

MODEL, DATASET, JOB = "model-" + "a" * 32, "dataset-" + "b" * 32, "job-" + "c" * 32
DATASET_REF = {"dataset_id": DATASET}
SPECS = {
    JobKind.SUPERVISED_TRAINING: {"model": {"model_id": MODEL}, "dataset": DATASET_REF},
    JobKind.REWARD_TRAINING: {
        "model": {"job_id": JOB, "step": 3},
        "dataset": DATASET_REF,
        "training": {"lora": {"rank": 4, "target_modules": ["q_proj"]}, "seed": 7, "max_steps": 5},
    },
    JobKind.POLICY_TRAINING: {
        "model": {"model_id": MODEL},
        "dataset": DATASET_REF,
        "method": {"name": "madpo", "params": {"tau": 2.5, "mode": "amp_only", "clip_negative": False}},
        "margin": {
            "reward_model": {"job_id": JOB},
            "outage_policy": "fail",
            "lookahead_batches": 3,
            "temperature": 1.5,
        },
    },
    JobKind.EVALUATION: {
        "model": {"model_id": MODEL},
        "prompt_dataset": DATASET_REF,
        "baseline_job_ids": [JOB],
        "metrics": ["toy_reward"],
        "sampling": {"temperatures": [0.7, 1.0], "seed": 3},
    },
    JobKind.CALIBRATION: {
        "eval_dataset": DATASET_REF,
        "dataset": {"job_id": JOB},
        "reward_model": {"job_id": JOB},
        "temperature": "fit",
        "method": {"name": "madpo", "params": {"tau": {"quantile": 0.9}}},
    },
    JobKind.DATASET_CHECK: {
        "dataset": DATASET_REF,
        "model": {"job_id": JOB},
        "eval_dataset": DATASET_REF,
        "max_tokens": 512,
        "overlong": "truncate_prompt",
    },
    JobKind.SAMPLING: {
        "model": {"job_id": JOB, "step": 3},
        "prompt_dataset": DATASET_REF,
        "reward_model": {"model_id": MODEL},
        "sampling": {"temperatures": [0.7, 1.0], "samples_per_prompt": 2},
        "pairing": {"name": "threshold", "params": {"margin": 0.5}},
        "labels": "soft",
        "mixed_dataset": {"job_id": JOB},
        "mixed_pairs": 100,
    },
    JobKind.SCORING: {"dataset": {"job_id": JOB}, "reward_model": {"model_id": MODEL}},
}


@pytest.mark.parametrize("kind", SPECS)
def test_a_spec_survives_the_wire(kind):
    spec = parse_spec(kind, SPECS[kind])

    message = convert.spec_to_proto(kind, spec.model_dump(mode="json"))

    assert convert.spec_from_proto(message) == (kind, spec)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_given_on_the_wire_takes_the_default_of_the_spec(kind):
    message = convert.spec_to_proto(kind, SPECS[kind])

    assert convert.spec_from_proto(message)[1] == parse_spec(kind, SPECS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_and_the_specs_have_the_same_fields(kind):
    descriptor = job_service_pb2.JobSpec.DESCRIPTOR.fields_by_name[kind.value].message_type

    check_same_fields(KINDS[kind].spec, descriptor)


def check_same_fields(schema: type[BaseModel], descriptor: Descriptor) -> None:
    deprecated = {field.name for field in descriptor.fields if field.GetOptions().deprecated}
    assert set(schema.model_fields) == set(descriptor.fields_by_name) - deprecated, descriptor.full_name
    assert set(getattr(schema, "renamed", {})) == deprecated, descriptor.full_name
    for name, field in schema.model_fields.items():
        nested = descriptor.fields_by_name[name].message_type
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_spec(kind)]
        if inner:
            check_same_fields(inner[0], nested)


def is_spec(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_jobs_a_spec_builds_on_are_found_and_named_checkpoints_are_not_waited_for():
    policy = parse_spec(JobKind.POLICY_TRAINING, SPECS[JobKind.POLICY_TRAINING])
    reward = parse_spec(JobKind.REWARD_TRAINING, SPECS[JobKind.REWARD_TRAINING])
    evaluation = parse_spec(JobKind.EVALUATION, SPECS[JobKind.EVALUATION])

    calibration = parse_spec(JobKind.CALIBRATION, SPECS[JobKind.CALIBRATION])

    assert awaited_job_ids(policy) == awaited_job_ids(evaluation) == awaited_job_ids(calibration) == (JOB,)
    assert awaited_job_ids(reward) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training": {"optimizer": {"learning_rate": 0}}}, "training.optimizer.learning_rate"),
        ({"training": {"epochs": float("nan")}}, "training.epochs"),
        ({"training": {"precision": "fp8"}}, "training.precision"),
        ({"training": {"bogus": 1}}, "training.bogus"),
        ({"dataset": "../../etc"}, "dataset.dataset_id"),
        ({"margin": {"source": "reward_service"}}, "margin"),
        ({"margin": {"source": "dataset", "temperature": 0}}, "margin.temperature"),
        ({"margin": {"source": "dataset", "temperature": "auto"}}, "margin.temperature"),
        ({"model": {"model_id": MODEL, "job_id": JOB}}, "model"),
        ({"model": {"model_id": MODEL, "step": 1}}, "model"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(change, field):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_spec(JobKind.POLICY_TRAINING, SPECS[JobKind.POLICY_TRAINING] | change)

    assert [violation.field for violation in caught.value.violations] == [f"spec.policy_training.{field}"]


def test_a_model_reference_names_exactly_one_source():
    assert ModelReference(job_id=JOB, step=4).step == 4
    assert (
        PolicyTrainingSpec(
            model=ModelReference(model_id=MODEL), dataset=DatasetReference(dataset_id=DATASET)
        ).method.name
        == "madpo"
    )


OLD_NAMES = {
    JobKind.SUPERVISED_TRAINING: {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"},
    JobKind.REWARD_TRAINING: {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"},
    JobKind.POLICY_TRAINING: {"dataset_id": "dataset", "eval_dataset_id": "eval_dataset"},
    JobKind.EVALUATION: {"prompt_dataset_id": "prompt_dataset", "preference_dataset_id": "eval_dataset"},
    JobKind.CALIBRATION: {"dataset_id": "eval_dataset", "training_dataset_id": "dataset"},
    JobKind.DATASET_CHECK: {"dataset_id": "dataset", "held_out_dataset_id": "eval_dataset"},
}
"""Of the kinds that were there when they were renamed."""
OTHER = "dataset-" + "d" * 32


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_the_old_names_of_datasets_are_read_from_json_and_from_the_wire_and_said_to_be_old(kind, caplog):
    reference = {"reference": {"model_id": MODEL}} if kind is JobKind.EVALUATION else {}
    rest = {name: value for name, value in SPECS[kind].items() if not name.endswith("dataset")} | reference
    _warn_once.cache_clear()
    ids = dict(zip(OLD_NAMES[kind], (DATASET, OTHER), strict=True))

    spec = parse_spec(kind, rest | ids)

    for old, new in OLD_NAMES[kind].items():
        assert getattr(spec, new).dataset_id == ids[old]
        assert f"{old} is deprecated: write {new}" in caplog.messages
    assert convert.spec_from_proto(convert.spec_to_proto(kind, rest | ids)) == (kind, spec)


def test_an_old_name_beside_the_new_one_is_refused():
    with pytest.raises(InvalidArgumentError, match="dataset_id is the old name of dataset: give dataset alone"):
        parse_spec(JobKind.REWARD_TRAINING, SPECS[JobKind.REWARD_TRAINING] | {"dataset_id": DATASET})


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_a_client_of_the_version_before_finds_the_old_names_in_a_job_and_a_new_one_does_not(kind):
    spec = parse_spec(kind, SPECS[kind]).model_dump(mode="json")
    job = Job(JOB, kind, JobState.RUNNING, spec)

    message = convert.job_to_proto(job)

    wire = getattr(message.spec, kind.value)
    for old, new in OLD_NAMES[kind].items():
        assert getattr(wire, old) == ((spec[new] or {}).get("dataset_id") or "")
    again = convert.job_from_proto(message)
    assert not set(again.spec) & set(OLD_NAMES[kind])
    assert parse_spec(kind, again.spec) == parse_spec(kind, SPECS[kind])


def test_references_may_be_written_as_text():
    spec = parse_spec(
        JobKind.POLICY_TRAINING,
        {"model": f"{JOB}@7", "dataset": JOB, "eval_dataset": DATASET, "margin": {"reward_model": MODEL}},
    )

    assert (spec.model.job_id, spec.model.step) == (JOB, 7)
    assert (spec.dataset.job_id, spec.eval_dataset.dataset_id) == (JOB, DATASET)
    assert spec.margin.reward_model.model_id == MODEL
    assert awaited_job_ids(spec) == (JOB,)


def test_a_list_of_one_wrong_item_is_not_too_short_as_well() -> None:
    with pytest.raises(InvalidArgumentError) as error:
        validate(SamplingParameters, {"temperatures": [11]}, path="sampling")
    assert [each.field for each in error.value.violations] == ["sampling.temperatures.0"]
    with pytest.raises(InvalidArgumentError) as error:
        validate(SamplingParameters, {"temperatures": []}, path="sampling")
    assert [each.field for each in error.value.violations] == ["sampling.temperatures"]


@pytest.mark.parametrize(
    ("training", "field", "said"),
    [
        (
            {"lora": {"r": 8}},
            "training.lora.r",
            "there is no such field; there are alpha, dropout, exclude_modules, quantize_base, rank",
        ),
        ({"lora": {"dropuot": 0}}, "training.lora.dropuot", "there is no such field; did you mean dropout? there are"),
        ({"max_step": 3}, "training.max_step", "there is no such field; did you mean max_steps? there are"),
    ],
)
def test_a_field_that_there_is_not_is_named_with_those_there_are(training, field, said):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_spec(JobKind.POLICY_TRAINING, {**SPECS[JobKind.POLICY_TRAINING], "training": training})

    (violation,) = caught.value.violations
    assert violation.field == f"spec.policy_training.{field}"
    assert violation.description.startswith(said)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("[a-z]*" * 2000, "at most 10000 characters together"),
        ("(" * 4000 + ")" * 4000, "is no regular expression"),
        ("a{" + "9" * 30 + "}", "is no regular expression"),
    ],
)
def test_an_expression_of_layers_is_bounded(pattern: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        LoraParameters(target_modules=(pattern,))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mixed_dataset": "dataset-" + "2" * 32}, "mixed_dataset has pairs, and the rule all_as_list leaves lists"),
        ({"labels": "soft"}, "labels are of pairs, and the rule all_as_list leaves lists"),
    ],
)
def test_a_rule_that_leaves_lists_has_no_use_for_what_is_of_pairs(given: dict[str, str], said: str) -> None:
    spec = {
        "model": "model-" + "1" * 32,
        "reward_model": "model-" + "2" * 32,
        "prompt_dataset": "dataset-" + "1" * 32,
        "pairing": {"name": "all_as_list"},
    }

    assert validate(SamplingSpec, spec, path="spec").sampling.samples_per_prompt == 4
    with pytest.raises(InvalidArgumentError, match=said):
        validate(SamplingSpec, spec | given, path="spec")


def test_what_sampling_does_not_say_keeps_its_default() -> None:
    spec = {
        "model": "model-" + "1" * 32,
        "reward_model": "model-" + "2" * 32,
        "prompt_dataset": "dataset-" + "1" * 32,
        "sampling": {"max_new_tokens": 9},
    }

    sampling = validate(SamplingSpec, spec, path="spec").sampling
    assert (sampling.samples_per_prompt, sampling.max_new_tokens) == (4, 9)
