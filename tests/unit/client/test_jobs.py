"""What the SDK makes of its arguments, and what it shows of a job's events."""

import pickle
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.jobs.base import ModelReference, Spec
from madpo.jobs.calibration import CalibrationSpec
from madpo.jobs.reward_training import RewardTrainingSpec
from madpo.jobs.training import OptimizerParameters, TrainingParameters
from madpo.rpc.convert import spec_from_proto, spec_to_proto
from madpo.types import (
    CheckpointPublished,
    Job,
    JobEvent,
    JobKind,
    JobProgress,
    JobState,
    LogLine,
    Model,
    StateChange,
)
from madpo_client import JobFailedError, JobHandle
from madpo_client.jobs import Jobs
from madpo_client.progress import JobView, describe_figures, describe_span
from madpo_client.references import model_reference
from tests.unit.client.recording import JOB_ID, RecordingSession

MODEL_ID = "model-" + "1" * 32
DATASET_ID = "dataset-" + "2" * 32


def on_the_wire(session: RecordingSession) -> Spec:
    kind, spec, _ = session.gateway.requests[-1]
    return spec_from_proto(spec_to_proto(kind, spec))[1]


@pytest.fixture
def session() -> RecordingSession:
    return RecordingSession()


@pytest.fixture
def jobs(session: RecordingSession) -> Jobs:
    return Jobs(session)  # type: ignore[arg-type]


@pytest.fixture
def handle() -> JobHandle:
    return JobHandle(None, Job(JOB_ID, JobKind.REWARD_TRAINING, JobState.RUNNING, {}))  # type: ignore[arg-type]


def test_a_model_may_be_given_in_every_way(handle: JobHandle) -> None:
    model = Model(MODEL_ID, "", "causal_lm", "", 0, 0.0, ())
    assert model_reference(model) == model_reference(MODEL_ID) == ModelReference(model_id=MODEL_ID)
    assert model_reference(handle) == model_reference(JOB_ID) == ModelReference(job_id=JOB_ID)
    step = ModelReference(job_id=JOB_ID, step=20)
    assert model_reference((handle, 20)) == model_reference(f"{JOB_ID}@20") == model_reference(step) == step


@pytest.mark.parametrize("text", ["gpt2", "model-12", f"{JOB_ID}@last", "", "job-1"])
def test_text_that_names_no_model_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="model"):
        model_reference(text)


def test_a_step_before_the_first_is_refused(handle: JobHandle) -> None:
    with pytest.raises(InvalidArgumentError, match=r"model\.step"):
        model_reference((handle, -1))


def test_a_policy_job_carries_what_was_given_and_leaves_the_rest_to_the_defaults(
    jobs: Jobs, session: RecordingSession, handle: JobHandle
) -> None:
    training = TrainingParameters(max_steps=5, optimizer=OptimizerParameters(learning_rate=1e-3))
    jobs.train_policy(
        model=MODEL_ID,
        dataset=DATASET_ID,
        params={"tau": 2.0},
        reward_model=handle,
        training=training,
        name="try",
        depends_on=[handle],
    )
    _, sent, rest = session.gateway.requests[-1]
    assert sent["training"] == {"max_steps": 5, "optimizer": {"learning_rate": 1e-3}}
    assert rest["display_name"] == "try"
    assert rest["depends_on"] == [JOB_ID]
    spec = on_the_wire(session)
    assert spec.training == training
    assert spec.method.params == {"tau": 2.0}
    assert spec.margin.source == "reward_service"
    assert spec.margin.reward_model == ModelReference(job_id=JOB_ID)


def test_margins_of_the_dataset_need_no_reward_model(jobs: Jobs, session: RecordingSession) -> None:
    jobs.train_policy(model=MODEL_ID, dataset=DATASET_ID, margin={"source": "dataset"})
    assert on_the_wire(session).margin.source == "dataset"


def test_a_calibration_carries_rules_and_numbers(jobs: Jobs, session: RecordingSession, handle: JobHandle) -> None:
    jobs.calibrate(dataset=DATASET_ID, reward_model=handle, params={"tau": "auto"}, temperature="fit")
    spec = on_the_wire(session)
    assert isinstance(spec, CalibrationSpec)
    assert (spec.method.name, spec.method.params, spec.temperature) == ("madpo", {"tau": "auto"}, "fit")
    assert (spec.reward_model, spec.dataset) == (ModelReference(job_id=JOB_ID), None)


OTHER_ID = "dataset-" + "9" * 32


def test_the_old_arguments_of_a_calibration_are_taken_and_none_dropped(jobs: Jobs, session: RecordingSession) -> None:
    given = [
        {"dataset": DATASET_ID, "training_dataset": OTHER_ID},
        {"eval_dataset": DATASET_ID, "training_dataset": OTHER_ID},
        {"eval_dataset": DATASET_ID, "dataset": OTHER_ID},
    ]
    for arguments in given:
        jobs.calibrate(**arguments)
        spec = on_the_wire(session)
        assert isinstance(spec, CalibrationSpec)
        assert (spec.eval_dataset.dataset_id, spec.dataset and spec.dataset.dataset_id) == (DATASET_ID, OTHER_ID)
    with pytest.raises(InvalidArgumentError, match="training_dataset is the old name of dataset"):
        jobs.calibrate(eval_dataset=DATASET_ID, dataset=DATASET_ID, training_dataset=OTHER_ID)
    with pytest.raises(InvalidArgumentError, match="give eval_dataset"):
        jobs.calibrate()


def test_a_kind_may_be_named_by_text_and_an_unknown_one_is_refused(jobs: Jobs, session: RecordingSession) -> None:
    jobs.create("reward_training", {"model": MODEL_ID, "dataset": DATASET_ID})
    assert isinstance(on_the_wire(session), RewardTrainingSpec)
    with pytest.raises(InvalidArgumentError, match="there is no job kind 'pruning'; kinds: supervised_training"):
        jobs.create("pruning", {})


def test_every_job_gets_a_request_id_of_its_own(jobs: Jobs, session: RecordingSession) -> None:
    for _ in range(2):
        jobs.train_reward(model=MODEL_ID, dataset=DATASET_ID)
    ids = [rest["request_id"] for *_, rest in session.gateway.requests]
    assert len({*ids}) == 2
    assert all(len(request_id) == 32 for request_id in ids)


def test_an_evaluation_names_its_baselines_and_sampling(
    jobs: Jobs, session: RecordingSession, handle: JobHandle
) -> None:
    jobs.evaluate(
        model=(handle, 3), prompts=DATASET_ID, baselines=[handle], metrics=["m"], sampling={"temperatures": [0.5, 1.0]}
    )
    spec = on_the_wire(session)
    assert spec.model == ModelReference(job_id=JOB_ID, step=3)
    assert spec.baseline_job_ids == (JOB_ID,)
    assert spec.sampling.temperatures == (0.5, 1.0)
    assert spec.generation_batch_size is None


def test_a_wrong_field_is_refused_by_name_before_anything_is_sent(jobs: Jobs, session: RecordingSession) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        jobs.train_reward(model=MODEL_ID, dataset=DATASET_ID, training={"max_steps": 0, "epoch": 1})
    assert {violation.field for violation in refused.value.violations} == {
        "training.max_steps",
        "training.epoch",
    }
    assert session.gateway.requests == []


def test_a_wrong_argument_is_called_as_its_caller_wrote_it(
    jobs: Jobs, session: RecordingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_gateway: list[str] = []

    def refuse(kind: JobKind, *_: Any, **__: Any) -> Any:
        raise InvalidArgumentError.of([FieldViolation(name.format(kind.value), "is wrong") for name in at_the_gateway])

    monkeypatch.setattr(session.gateway, "create_job", refuse)

    def named(call: Callable[..., Any], *fields: str, **given: Any) -> list[str]:
        at_the_gateway[:] = fields
        with pytest.raises(InvalidArgumentError) as refused:
            call(**given)
        assert str(refused.value).startswith(f"{refused.value.violations[0].field}: ")
        return [violation.field for violation in refused.value.violations]

    given = {"model": MODEL_ID, "dataset": DATASET_ID}
    of_margins = ("spec.{}.margin.reward_model.model_id", "spec.{}.margin.temperature")
    of_methods = ("spec.{}.method.name", "spec.{}.method.params.tau", "spec.{}.method")
    lora = named(jobs.train_supervised, "spec.{}.training.lora.rank", "display_name", "depends_on.0", **given)
    policy = named(jobs.train_policy, *of_methods, *of_margins, reward_model=MODEL_ID, **given)
    margin = named(jobs.train_policy, *of_margins, margin={"reward_model": MODEL_ID}, **given)
    prompts = ("spec.{}.prompt_dataset.dataset_id", "spec.{}.baseline_job_ids.0", "spec.{}.sampling.seed")
    evaluation = named(jobs.evaluate, *prompts, model=MODEL_ID, prompts=DATASET_ID)
    calibration = named(jobs.calibrate, *of_methods, eval_dataset=DATASET_ID)
    pairs = ("spec.{}.pairing.name", "spec.{}.pairing.params.margin", "spec.{}.prompt_dataset")
    sampling = named(jobs.sample, *pairs, model=MODEL_ID, prompts=DATASET_ID, reward_model=MODEL_ID)
    whole = named(
        jobs.create, "spec.{}", "spec.{}.method.name", kind="policy_training", spec=given | {"method": {"name": "dpo"}}
    )

    assert lora == ["training.lora.rank", "name", "depends_on.0"]
    assert policy == ["method", "params.tau", "method", "reward_model.model_id", "margin.temperature"]
    assert margin == ["margin.reward_model.model_id", "margin.temperature"]
    assert evaluation == ["prompts.dataset_id", "baselines.0", "sampling.seed"]
    assert calibration == ["method", "params.tau", "method"]
    assert sampling == ["rule", "params.margin", "prompts"]
    assert whole == ["spec", "method.name"]


def test_the_failure_of_a_job_survives_pickling() -> None:
    error = JobFailedError("it failed", Job(JOB_ID, JobKind.EVALUATION, JobState.FAILED, {}, reason="why"))
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "it failed"
    assert copy.job == error.job


def test_the_figures_of_a_step_fit_on_one_line() -> None:
    progress = JobProgress(
        step=3,
        total_steps=10,
        metrics={"loss": 0.6931, "rewards/accuracy": 0.625, "rows_per_s": 12.34, "time/step_s": 2.0,
                 "time/margin_wait_s": 0.5, "grad_norm": 3.0},
        remaining_s=65,
    )  # fmt: skip
    assert describe_figures(progress) == "loss 0.6931 · accuracy 62.5% · rows/s 12.3 · margin wait 25% · 1:05 left"
    assert describe_span(3723) == "1:02:03"


def test_without_a_terminal_a_job_is_shown_in_plain_lines() -> None:
    out = StringIO()
    job = Job(JOB_ID, JobKind.POLICY_TRAINING, JobState.PENDING, {}, display_name="try")
    events = [
        StateChange(JobState.RUNNING, 2),
        JobProgress(phase="loading"),
        *(JobProgress(step, 50, {"loss": 1.0 / step}, phase="training") for step in range(1, 51)),
        LogLine("a secret of the log"),
        CheckpointPublished(50),
        StateChange(JobState.FAILED, 2, "out of memory [12 GiB]"),
    ]
    with JobView(job, console=Console(file=out, width=200)) as view:
        for event in events:
            view.show(JobEvent("0", 0.0, event))
    assert out.getvalue().splitlines() == [
        "try: running, attempt 2",
        "try: loading",
        "try: training 1/50  loss 1.0000",
        "try: training 50/50  loss 0.0200",
        "try: checkpoint of step 50",
        "try: failed, attempt 2: out of memory [12 GiB]",
    ]


def test_who_waits_for_a_job_hears_its_reason_once() -> None:
    job = Job(JOB_ID, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, display_name="try")
    out = StringIO()
    with JobView(job, console=Console(file=out, width=200), why=False) as view:
        view.show(JobEvent("1", 0.0, StateChange(JobState.PENDING, 2, "lost its worker")))
        view.show(JobEvent("2", 0.0, StateChange(JobState.FAILED, 2, "out of memory")))
    assert out.getvalue().splitlines() == ["try: pending, attempt 2: lost its worker", "try: failed, attempt 2"]


def test_a_phase_that_counts_is_shown_by_its_own_count() -> None:
    events = [
        JobProgress(step=7, phase="reference log-probs", phase_done=0, phase_total=4000, phase_unit="rows"),
        JobProgress(
            step=7, phase="reference log-probs", phase_done=4000, phase_total=4000, phase_unit="rows", remaining_s=0.0
        ),
        JobProgress(phase="fetching model", phase_done=0, phase_total=3_000_000, phase_unit="bytes"),
        JobProgress(phase="reporting"),
    ]
    job = Job(JOB_ID, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, display_name="try")
    out = StringIO()
    with JobView(job, console=Console(file=out, width=200)) as view:
        for event in events:
            view.show(JobEvent("0", 0.0, event))
    assert out.getvalue().splitlines() == [
        "try: reference log-probs 0/4,000 rows",
        "try: reference log-probs 4,000/4,000 rows  0:00 left",
        "try: fetching model 0 bytes/3.0 MB",
        "try: reporting",
    ]


def test_on_a_terminal_the_bar_of_a_phase_gives_way_to_that_of_the_steps() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True)
    job = Job(JOB_ID, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, display_name="try")
    with JobView(job, console=console) as view:
        phase = JobProgress(phase="tokenizing", phase_done=12, phase_total=48, phase_unit="rows")
        view.show(JobEvent("1", 0.0, phase))
        view._live.refresh()
        assert "12/48" in console.file.getvalue()
        view.show(JobEvent("2", 0.0, JobProgress(7, 50, {"loss": 0.5}, phase="training")))
    assert "7/50" in console.file.getvalue().split("training")[-1]


def test_on_a_terminal_the_bar_keeps_its_place_over_a_new_phase() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True)
    job = Job(JOB_ID, JobKind.POLICY_TRAINING, JobState.RUNNING, {}, display_name="try")
    with JobView(job, console=console, log=True) as view:
        view.show(JobEvent("1", 0.0, JobProgress(7, 50, {"loss": 0.5}, remaining_s=9, phase="training")))
        view.show(JobEvent("2", 0.0, JobProgress(step=7, phase="publishing")))
        view.show(JobEvent("3", 0.0, LogLine("[bold]not markup")))
    shown = console.file.getvalue()
    assert "7/50" in shown.split("publishing")[-1]
    assert "loss 0.5000" in shown.split("publishing")[-1]
    assert "[bold]not markup" in shown
