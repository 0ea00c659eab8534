"""What stands for a job, a model or a dataset: ids, their beginnings, names and `@last`."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import ModelReference
from madpo.types import Dataset, DatasetKind, Job, JobKind, JobResult, JobState, Model
from madpo_client.lookup import References, needs_lookup
from madpo_client.models import Models

POLICY, REWARD, TWIN = (f"model-{digit * 4}{'0' * 28}" for digit in "abc")
PAIRS, PROMPTS = f"dataset-{'a' * 32}", f"dataset-{'b' * 32}"
FAILED, TRAINING, MADE, NEWEST = (f"job-{digits}{'0' * 26}" for digits in ("aaaa11", "aaaa22", "bbbb11", "cccc11"))


def model(model_id: str, name: str, kind: str, create_time: float) -> Model:
    return Model(model_id, name, kind, "", 0, create_time, ())


def job(job_id: str, name: str, kind: JobKind, state: JobState, create_time: float, **rest: Any) -> Job:
    return Job(job_id, kind, state, rest.pop("spec", {}), name, create_time=create_time, **rest)


class Listings:
    """A session over what a gateway lists, newest first, in pages of two."""

    models: Sequence[Model] = (
        model(TWIN, "twin", "causal_lm", 6.0),
        model(REWARD, "base-reward", "reward", 4.0),
        model(POLICY, "base", "causal_lm", 1.0),
    )
    datasets: Sequence[Dataset] = (
        Dataset(PROMPTS, "held-out", DatasetKind.PROMPT, 1, 1, 3.0),
        Dataset(PAIRS, "pairs", DatasetKind.PREFERENCE, 1, 1, 2.0),
    )
    jobs: Sequence[Job] = (
        job(NEWEST, "look", JobKind.EVALUATION, JobState.FAILED, 7.0),
        job(TRAINING, "twin", JobKind.POLICY_TRAINING, JobState.RUNNING, 5.0, spec={"method": {"name": "dpo"}}),
        job(MADE, "base-reward", JobKind.REWARD_TRAINING, JobState.SUCCEEDED, 3.5, result=JobResult(REWARD)),
        job(FAILED, "base-reward", JobKind.REWARD_TRAINING, JobState.FAILED, 3.0),
    )

    def __init__(self) -> None:
        self.gateway = self
        self.calls = 0

    def list_jobs(self) -> Sequence[Job]:
        return self.jobs

    def list_models(self, **told: Any) -> Sequence[Model]:
        return self.models

    def list_datasets(self, **told: Any) -> Sequence[Dataset]:
        return self.datasets

    def get_job(self, job_id: str) -> Job:
        return next(each for each in self.jobs if each.job_id == job_id)

    def each(self, fetch: Any) -> Any:
        self.calls += 1
        return iter(fetch())

    def run(self, value: Any) -> Any:
        return value


@pytest.fixture
def session() -> Listings:
    return Listings()


@pytest.fixture
def references(session: Listings) -> References:
    return References(session)  # type: ignore[arg-type]


def test_ids_cost_no_call(session: Listings, references: References) -> None:
    assert references.job_id(FAILED) == FAILED
    assert references.model(f"{FAILED}@20") == ModelReference(job_id=FAILED, step=20)
    assert references.dataset_id(PAIRS) == PAIRS
    assert session.calls == 0
    assert not any(map(needs_lookup, (FAILED, f"{FAILED}@3", POLICY, PAIRS, "", "two\nlines")))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("job-bbbb", MADE),
        ("bbbb", MADE),
        ("aaaa1", FAILED),
        (TRAINING[:-1], TRAINING),
        ("look", NEWEST),
        ("@last", NEWEST),
        ("@last:reward", MADE),
        ("@last:policy_training", TRAINING),
        ("@last:dpo", TRAINING),
    ],
)
def test_a_job_is_found_by_what_names_no_other(references: References, text: str, found: str) -> None:
    assert references.job_id(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base", ModelReference(model_id=POLICY)),
        ("aaaa0", ModelReference(model_id=POLICY)),
        ("model-bb", None),
        ("model-bbbb", ModelReference(model_id=REWARD)),
        # The job and its model are one thing; the job that failed has none to give.
        ("base-reward", ModelReference(model_id=REWARD)),
        ("base-reward@20", None),
        ("job-bbbb@20", ModelReference(job_id=MADE, step=20)),
        ("@last", ModelReference(model_id=TWIN)),
        ("@last:policy", ModelReference(job_id=TRAINING)),
        ("@last@7", ModelReference(job_id=TRAINING, step=7)),
        ("@last:reward", ModelReference(model_id=REWARD)),
    ],
)
def test_a_model_is_found_also_as_that_of_a_job(
    references: References, text: str, found: ModelReference | None
) -> None:
    if found is not None:
        assert references.model(text) == found
        return
    with pytest.raises((NotFoundError, InvalidArgumentError)):
        references.model(text)


def test_a_dataset_is_found_by_name_and_age(references: References) -> None:
    assert references.dataset_id("pairs") == PAIRS
    assert references.dataset_id("@last") == PROMPTS
    assert references.dataset_id("@last:preference") == PAIRS
    assert references.dataset_id("dataset-aaaa") == PAIRS


def test_a_stored_model_may_be_named_by_its_job(references: References) -> None:
    assert references.model_id("bbbb1") == REWARD
    with pytest.raises(NotFoundError, match=f"{TRAINING} is RUNNING and has left no model"):
        references.model_id(TRAINING)
    with pytest.raises(NotFoundError, match="@20 is a checkpoint, which is no stored model"):
        references.model_id("bbbb1@20")


def test_what_is_needed_decides_between_things_of_one_name(references: References) -> None:
    spec = {
        "model": "base",
        "dataset": "@last",
        "margin": {"reward_model": "base-reward"},
        "method": {"name": "madpo", "params": {"tau": "@last"}},
    }
    assert references.in_spec(JobKind.POLICY_TRAINING, spec) == {
        "model": POLICY,
        "dataset": PAIRS,  # the newest of pairs, though prompts are newer
        "margin": {"reward_model": REWARD},
        "method": {"name": "madpo", "params": {"tau": "@last"}},
    }


def test_references_in_parts_are_looked_up_too(references: References) -> None:
    spec = {"model": {"job_id": "twin", "step": 3}, "prompt_dataset_id": "pairs", "baseline_job_ids": ["look"]}
    assert references.in_spec(JobKind.EVALUATION, spec) == {
        "model": {"job_id": TRAINING, "step": 3},
        "prompt_dataset_id": PAIRS,
        "baseline_job_ids": [NEWEST],
    }


def test_a_job_and_the_dataset_it_has_left_are_one_thing(session: Listings) -> None:
    left = Dataset(PAIRS, "to-label", DatasetKind.PREFERENCE, 1, 1, 8.0)
    sampling = job(MADE, "to-label", JobKind.SAMPLING, JobState.SUCCEEDED, 7.5, result=JobResult(dataset_id=PAIRS))
    session.datasets, session.jobs = (left,), (sampling,)

    assert References(session).dataset_id("to-label") == PAIRS  # type: ignore[arg-type]


def test_more_than_one_is_refused_with_all_of_them(references: References) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        references.job_id("aaaa")
    first, *listed = str(refused.value).splitlines()
    assert first == "'aaaa' may be any of 2: give the id, or enough of it; @last is the newest"
    assert [line.split()[0] for line in listed] == [TRAINING, FAILED]
    assert listed[0].split()[3:] == ["policy_training", "RUNNING", "twin"]
    with pytest.raises(InvalidArgumentError, match="'twin' may be any of 2"):
        references.model("twin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lok", "there is no job 'lok'; did you mean look? `madpo job list` lists them"),
        ("@lst", "there is no job '@lst'; did you mean @last?"),
        ("zzzz", "there is no job 'zzzz': give an id, its beginning (4 digits or more), a name, or @last"),
        ("aaa", "there is no job 'aaa': give an id"),
        (
            "@last:rewrd_training",
            "@last:rewrd_training: there is no job of a kind or method 'rewrd_training'; did you mean",
        ),
        ("@last:calibration", "@last:calibration: there is no job of a kind or method 'calibration' yet"),
    ],
)
def test_nothing_is_refused_with_what_may_have_been_meant(references: References, text: str, message: str) -> None:
    with pytest.raises(NotFoundError) as refused:
        references.job_id(text)
    assert str(refused.value).startswith(message)


def test_a_field_that_names_nothing_is_named(references: References) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        references.in_spec(JobKind.REWARD_TRAINING, {"model": "bse", "dataset": "pairs"})
    (violation,) = refused.value.violations
    assert violation.field == "spec.reward_training.model"
    assert violation.description.startswith("there is no model 'bse'; did you mean base?")


@pytest.mark.parametrize("path", ["pairs.jsonl", "data/pairs.jsonl.gz"])
def test_the_path_of_a_file_is_answered_with_the_name_that_its_upload_has(references: References, path: str) -> None:
    with pytest.raises(NotFoundError, match=r"did you mean pairs\?"):
        references.dataset_id(path)


def test_what_was_found_is_said(references: References, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="madpo_client.lookup"):
        references.job_id("look")
        references.job_id(FAILED)
    assert caplog.messages == [f"look is {NEWEST}"]


def test_the_base_of_an_imported_adapter_may_be_named_as_any_model(session: Listings) -> None:
    asked: list[tuple[str, str]] = []

    def import_model(hub_id: str, *, revision: str, base_model_id: str) -> tuple[Model, bool, str]:
        asked.append((hub_id, base_model_id))
        return session.models[0], True, "c" * 40

    session.import_model = import_model  # type: ignore[attr-defined]
    models = Models(session)  # type: ignore[arg-type]

    for base in ("base", "@last", POLICY, session.models[2], None):
        models.import_from_hub("somebody/lora", base=base)

    assert asked == [("somebody/lora", base) for base in (POLICY, TWIN, POLICY, POLICY, "")]
