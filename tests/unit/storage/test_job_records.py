"""What a job leaves in the store: request, outcome, artifacts, and the models others refer to."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import AlreadyExistsError, CorruptObjectError, FailedPreconditionError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference
from madpo.storage import bundle, keys
from madpo.storage.artifacts import list_artifacts, open_artifact, publish_artifacts
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.storage.references import checkpoint_bases, resolve_dataset_id, resolve_model
from madpo.storage.results import (
    JobOutcome,
    JobStanding,
    accept_resume,
    accept_spec,
    close_result,
    keep_cancellation,
    read_result,
    read_spec,
    read_standing,
    reopen_result,
    write_result,
    write_spec,
)
from madpo.storage.withdrawals import withdraw
from madpo.types import Job, JobKind, JobResult, JobState
from tests.damage import DAMAGES

JOB = "job-" + "1" * 32
EMPTY_SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def models(store: LocalStore, tmp_path: Path) -> ModelStore:
    return ModelStore(store, tmp_path / "cache")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("change", ["success", "cancellation", "resumption"])
def test_a_damaged_outcome_keeps_nobody_from_writing_the_next(
    store: LocalStore, damage: Callable[[bytes], bytes], change: str
) -> None:
    keep_cancellation(store, make_job(state=JobState.RUNNING, resumes=1))
    store.put(keys.job_result(JOB), damage(store.get(keys.job_result(JOB))))
    with pytest.raises(CorruptObjectError):
        read_standing(store, JOB)

    match change:
        case "success":
            write_result(store, JOB, JobState.SUCCEEDED, JobResult(), "", resumes=1)
            expected = JobStanding(JobOutcome(JobState.SUCCEEDED, JobResult()), 1, False)
        case "cancellation":
            keep_cancellation(store, make_job(state=JobState.RUNNING, resumes=1))
            expected = JobStanding(None, 1, True)
        case _:
            reopen_result(store, make_job(state=JobState.FAILED, reason="boom", resumes=1))
            accept_resume(store, make_job(resumes=2))
            expected = JobStanding(None, 2, False)
    assert read_standing(store, JOB) == expected


def test_a_resumed_job_ends_anew_and_what_comes_late_from_before_is_dropped(store: LocalStore) -> None:
    ended = make_job(state=JobState.FAILED, reason="boom")
    write_result(store, JOB, JobState.FAILED, None, "boom")
    reopen_result(store, ended)
    reopen_result(store, ended)
    with pytest.raises(NotFoundError):
        read_result(store, JOB)
    assert read_standing(store, JOB) == JobStanding(JobOutcome(JobState.FAILED, None, "boom"), 0, False)
    accept_resume(store, make_job(resumes=1))
    assert read_standing(store, JOB) == JobStanding(None, 1, False)

    write_result(store, JOB, JobState.FAILED, None, "late")
    with pytest.raises(NotFoundError):
        read_result(store, JOB)
    result = JobResult("model-1")
    write_result(store, JOB, JobState.SUCCEEDED, result, "", resumes=1)
    reopen_result(store, ended)  # asked for long ago
    write_result(store, JOB, JobState.FAILED, None, "late")
    assert read_result(store, JOB) == JobOutcome(JobState.SUCCEEDED, result, "")


def test_a_late_outcome_of_before_cannot_come_first(store: LocalStore) -> None:
    reopen_result(store, make_job(state=JobState.FAILED))
    write_result(store, JOB, JobState.FAILED, None, "late")
    with pytest.raises(NotFoundError):
        read_result(store, JOB)


def test_a_resumption_that_was_refused_leaves_the_outcome(store: LocalStore) -> None:
    ended = make_job(state=JobState.FAILED, reason="boom")
    write_result(store, JOB, JobState.FAILED, None, "boom")
    reopen_result(store, ended)
    close_result(store, ended)
    assert read_result(store, JOB) == JobOutcome(JobState.FAILED, None, "boom")
    close_result(store, make_job(state=JobState.FAILED, reason="other"))
    assert read_result(store, JOB).reason == "boom"


def make_job(**changes: Any) -> Job:
    fields = {
        "job_id": JOB,
        "kind": JobKind.EVALUATION,
        "state": JobState.PENDING,
        "spec": {"model": {"model_id": "m"}},
        "display_name": "tiny",
        "depends_on": ("job-2",),
        "create_time": 12.5,
    }
    return Job(**{**fields, **changes})


def test_a_request_is_kept_once(store: LocalStore) -> None:
    write_spec(store, make_job())
    write_spec(store, make_job(attempt=2, state=JobState.RUNNING))

    assert read_spec(store, JOB) == make_job()
    with pytest.raises(AlreadyExistsError, match=JOB):
        write_spec(store, make_job(spec={}))
    with pytest.raises(NotFoundError):
        read_spec(store, "job-0")


def test_a_request_counts_once_the_queue_has_taken_it(store: LocalStore) -> None:
    write_spec(store, make_job(spec={"asked": "first"}), is_accepted=False)
    with pytest.raises(NotFoundError, match="never queued"):
        read_spec(store, JOB, only_accepted=True)

    accept_spec(store, make_job())  # what the queue took, whoever asked
    accept_spec(store, make_job(spec={"asked": "late"}))

    assert read_spec(store, JOB, only_accepted=True) == make_job()


def test_what_is_accepted_is_kept_also_where_the_request_was_removed(store: LocalStore) -> None:
    accept_spec(store, make_job())
    assert read_spec(store, JOB, only_accepted=True) == make_job()


def test_a_cancellation_is_kept_until_the_job_ends_or_is_resumed(store: LocalStore) -> None:
    running = make_job(state=JobState.RUNNING)
    keep_cancellation(store, running)
    keep_cancellation(store, running)
    assert read_standing(store, JOB) == JobStanding(None, 0, True)

    write_result(store, JOB, JobState.CANCELLED, None, "cancelled on request")
    keep_cancellation(store, running)  # late
    cancelled = JobOutcome(JobState.CANCELLED, None, "cancelled on request")
    assert read_standing(store, JOB) == JobStanding(cancelled, 0, False)

    reopen_result(store, make_job(state=JobState.CANCELLED))
    accept_resume(store, make_job(resumes=1))
    keep_cancellation(store, running)  # later still
    assert read_standing(store, JOB) == JobStanding(None, 1, False)


def test_accepting_a_resumption_late_takes_nothing_back(store: LocalStore) -> None:
    reopen_result(store, make_job(state=JobState.FAILED))
    resumed = make_job(resumes=1)
    keep_cancellation(store, resumed)
    accept_resume(store, resumed)
    assert read_standing(store, JOB) == JobStanding(None, 1, True)
    write_result(store, JOB, JobState.SUCCEEDED, None, "", resumes=1)
    accept_resume(store, resumed)
    assert read_standing(store, JOB) == JobStanding(JobOutcome(JobState.SUCCEEDED, None, ""), 1, False)


def test_the_first_outcome_stays(store: LocalStore) -> None:
    with pytest.raises(NotFoundError):
        read_result(store, JOB)
    result = JobResult("model-1", {"loss": 0.5}, warnings=("no plot",))

    write_result(store, JOB, JobState.SUCCEEDED, result, "")
    write_result(store, JOB, JobState.FAILED, None, "late")

    assert read_result(store, JOB) == JobOutcome(JobState.SUCCEEDED, result, "")


def test_an_unreadable_outcome_is_named(store: LocalStore) -> None:
    store.put(keys.job_result(JOB), b"[1]")

    with pytest.raises(CorruptObjectError, match=f"{JOB}/result.json"):
        read_result(store, JOB)


def test_artifacts_are_those_of_the_newest_attempt(store: LocalStore, tmp_path: Path) -> None:
    assert list_artifacts(store, JOB) == []
    for attempt, name in ((2, "old.json"), (10, "report.json")):
        directory = tmp_path / str(attempt)
        (directory / "plots").mkdir(parents=True)
        (directory / name).write_text("{}")
        (directory / "plots/manifest.json").write_text("png")
        publish_artifacts(store, JOB, directory, attempt=attempt)
    store.put(f"{keys.artifacts(JOB, attempt=11)}/unfinished.json", b"")

    assert [file.path for file in list_artifacts(store, JOB)] == ["plots/manifest.json", "report.json"]
    with open_artifact(store, JOB, "report.json") as stream:
        assert stream.read() == b"{}"
    for name in ("old.json", "unfinished.json", "manifest.json", "../spec.json", ""):
        with pytest.raises(NotFoundError, match="no artifact"), open_artifact(store, JOB, name):
            pass


def test_early_artifacts_stand_until_a_later_attempt_has_any_or_theirs_ends(object_store, tmp_path: Path) -> None:
    def publish(name: str, **when: Any) -> list[str]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / f"{name}.json").write_text(name)
        publish_artifacts(object_store, JOB, directory, **when)
        return [file.path for file in list_artifacts(object_store, JOB)]

    def kept() -> list[str]:
        root = keys.all_artifacts(JOB)
        return [
            info.key.removeprefix(f"{root}/") for info in object_store.list(f"{root}/") if "manifest" not in info.key
        ]

    assert publish("first", attempt=1, early_step=0) == ["first.json"]
    assert publish("second", attempt=1, early_step=9) == ["second.json"]
    assert publish("third", attempt=1, early_step=10) == ["third.json"]
    assert publish("again", attempt=2, early_step=5) == ["again.json"]
    # Of an attempt the last but one stays, for those who are reading it.
    assert sorted(kept()) == [
        "a00001-early-00000009/second.json",
        "a00001-early-00000010/third.json",
        "a00002-early-00000005/again.json",
    ]
    assert publish("end", attempt=2) == ["end.json"]
    assert publish("late", attempt=1) == ["end.json"]


def make_model(directory: Path, *, adapter: bool = False) -> Path:
    directory.mkdir(parents=True)
    (directory / f"{'adapter_' if adapter else ''}model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    if adapter:
        (directory / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM", "peft_type": "LORA"}')
    else:
        (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return directory


def test_a_model_id_resolves_to_a_directory_and_its_base(store: LocalStore, models: ModelStore, tmp_path: Path) -> None:
    base, _ = models.publish(make_model(tmp_path / "base"), display_name="", kind="causal_lm")
    adapter, _ = models.publish(
        make_model(tmp_path / "adapter", adapter=True),
        display_name="",
        kind="causal_lm",
        base_model_id=base.model_id,
    )

    plain = resolve_model(ModelReference(model_id=base.model_id), store=store, models=models)
    adapted = resolve_model(ModelReference(model_id=adapter.model_id), store=store, models=models)

    assert (plain.base_directory, plain.model_id) == (None, base.model_id)
    assert (adapted.base_directory, adapted.model_id) == (plain.directory, adapter.model_id)
    assert (plain.directory / "config.json").is_file()
    assert (adapted.directory / "adapter_config.json").is_file()


@pytest.mark.parametrize("reference", ["model", "dataset", "step"])
def test_what_is_out_of_sight_for_a_moment_is_waited_for(
    store: LocalStore, models: ModelStore, tmp_path: Path, reference: str
) -> None:
    """Somebody looks whether it may be deleted; it may not, since the job that asks needs it."""
    model, _ = models.publish(make_model(tmp_path / "model"), display_name="", kind="causal_lm")
    dataset_id = "dataset-" + "2" * 32
    bundle.publish(store, keys.dataset(dataset_id), make_model(tmp_path / "rows"), metadata={})
    checkpoints = CheckpointStore(store, JOB, attempt=1)
    checkpoints.take_ownership()
    make_model(tmp_path / "files" / "model")
    checkpoints.publish(10, tmp_path / "files", metadata={})
    prefix, resolve = {
        "model": (
            keys.model(model.model_id),
            lambda: resolve_model(ModelReference(model_id=model.model_id), store=store, models=models),
        ),
        "dataset": (
            keys.dataset(dataset_id),
            lambda: resolve_dataset_id(DatasetReference(dataset_id=dataset_id), store=store),
        ),
        "step": (
            keys.checkpoint(JOB, step=10, attempt=1),
            lambda: resolve_model(ModelReference(job_id=JOB, step=10), store=store, models=models),
        ),
    }[reference]
    withdrawal = withdraw(store, prefix, stored_time=bundle.read_manifest(store, prefix).stored_time)

    with ThreadPoolExecutor(1) as pool:
        resolved = pool.submit(resolve)
        with pytest.raises(TimeoutError):
            resolved.result(0.3)
        withdrawal.put_back()
        assert resolved.result(30)


def test_a_job_resolves_to_its_model(store: LocalStore, models: ModelStore, tmp_path: Path) -> None:
    model, _ = models.publish(make_model(tmp_path / "model"), display_name="", kind="causal_lm")
    write_result(store, JOB, JobState.SUCCEEDED, JobResult(model.model_id), "")

    assert resolve_model(ModelReference(job_id=JOB), store=store, models=models).model_id == model.model_id


@pytest.mark.parametrize(
    ("state", "result", "message"),
    [
        (None, None, "has not ended"),
        (JobState.FAILED, None, "ended as FAILED"),
        (JobState.CANCELLED, JobResult("model-1"), "ended as CANCELLED"),
        (JobState.SUCCEEDED, JobResult(), "leaves no model"),
        (JobState.SUCCEEDED, None, "leaves no model"),
    ],
)
def test_a_job_without_a_model_is_explained(
    store: LocalStore, models: ModelStore, state: JobState | None, result: JobResult | None, message: str
) -> None:
    if state is not None:
        write_result(store, JOB, state, result, "")

    with pytest.raises(FailedPreconditionError, match=f"{JOB} {message}"):
        resolve_model(ModelReference(job_id=JOB), store=store, models=models)


def test_a_step_resolves_to_the_model_of_that_checkpoint(store: LocalStore, models: ModelStore, tmp_path: Path) -> None:
    base, _ = models.publish(make_model(tmp_path / "base"), display_name="", kind="causal_lm")
    checkpoints = CheckpointStore(store, JOB, attempt=1)
    checkpoints.take_ownership()
    for step in (10, 20):
        directory = tmp_path / f"step-{step}"
        make_model(directory / "model", adapter=True)
        (directory / "optimizer.safetensors").write_bytes(b"")
        record = {"base_model_id": base.model_id if step == 10 else None, "step": step}
        (directory / "model/madpo.json").write_text(json.dumps(record))
        checkpoints.publish(step, directory, metadata={})

    resolved = resolve_model(ModelReference(job_id=JOB, step=10), store=store, models=models)
    later = resolve_model(ModelReference(job_id=JOB, step=20), store=store, models=models)

    assert sorted(path.name for path in resolved.directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "madpo.json",
    ]
    assert (resolved.base_directory, resolved.model_id) == (models.fetch(base.model_id), None)
    assert later.base_directory is None
    assert later.directory != resolved.directory
    with pytest.raises(NotFoundError, match="no checkpoint of step 30"):
        resolve_model(ModelReference(job_id=JOB, step=30), store=store, models=models)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_whose_base_was_changed_is_named_and_never_taken_for_anothers(
    store: LocalStore, models: ModelStore, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    base, _ = models.publish(make_model(tmp_path / "base"), display_name="", kind="causal_lm")
    checkpoints = CheckpointStore(store, JOB, attempt=1)
    checkpoints.take_ownership()
    for step, record in ((10, {"base_model_id": base.model_id}), (20, {"base_model_id": None}), (30, None)):
        make_model(tmp_path / f"{step}/model", adapter=True)
        if record is not None:
            (tmp_path / f"{step}/model/madpo.json").write_text(json.dumps(record))
        checkpoints.publish(step, tmp_path / f"{step}", metadata={})
    assert checkpoint_bases(JOB, store) == {base.model_id}
    key = f"{keys.checkpoint(JOB, step=10, attempt=1)}/model/madpo.json"
    store.put(key, damage(store.get(key)))
    with pytest.raises(CorruptObjectError, match=key):
        checkpoint_bases(JOB, store)
    store.delete(key)
    with pytest.raises(CorruptObjectError, match=key):
        checkpoint_bases(JOB, store)
