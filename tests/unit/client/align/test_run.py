"""Chains are carried out: what is asked for when, checkpoints on the way, and rounds that are stopped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.evaluation.report import EvaluationReport
from madpo.types import CheckpointPublished, Job, JobEvent, JobKind, JobProgress, JobResult, JobState
from madpo_client.align.chain import Chain, make_chain
from madpo_client.align.read import read_verdict
from madpo_client.align.recipe import Recipe
from madpo_client.align.run import carry_out
from madpo_client.client import Client
from tests.unit.client.align.test_chain import FOUND, recipe
from tests.unit.client.align.test_read import RecordedJob, evaluation


@dataclass
class Jobs:
    """A gateway's jobs, which end when they are waited for."""

    chain: Chain
    finished: Mapping[str, float] = field(default_factory=dict)
    """Share of finished responses, by what was evaluated."""
    checkpoints: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    """Of the checkpoints, those that are there when the training is over."""
    deleted: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def create(self, kind: JobKind, spec: Mapping[str, Any], *, name: str, request_id: str) -> "Waited":
        name = name.removeprefix("toy: ")
        step = (spec.get("model") or {}).get("step")
        if step is not None and step not in self.kept:
            raise InvalidArgumentError(f"there is no checkpoint of step {step}")
        self.asked.append(name)
        return Waited(self, name, kind, request_id)


@dataclass
class Waited:
    jobs: Jobs
    name: str
    kind: JobKind
    request_id: str
    state: JobState = JobState.SUCCEEDED

    @property
    def id(self) -> str:
        named = {step.name: step.job_id for step in self.jobs.chain.steps()}
        return named.get(self.name, f"job of {self.name}")

    @property
    def job(self) -> Job:
        steps = max(self.jobs.checkpoints, default=3)
        result = JobResult(
            model_id=f"model of {self.name}", summary={"steps": steps, "responses": 4, "response_tokens": 2.0}
        )
        return Job(self.id, self.kind, self.state, spec={}, result=result, start_time=1.0, finish_time=2.0)

    def wait(self, *, progress: bool, on_event: Callable[[JobEvent], None] | None) -> Job:
        if self.name in self.jobs.deleted:
            raise NotFoundError("there is no such job")
        if on_event is not None:
            on_event(JobEvent("1", 0.0, JobProgress(total_steps=max(self.jobs.checkpoints, default=3))))
            for step in self.jobs.checkpoints:
                on_event(JobEvent("2", 0.0, CheckpointPublished(step)))
        return self.job

    def report(self) -> EvaluationReport:
        number = len(self.name)  # each later round has a longer way behind it
        found = evaluation(float(self.name[-1]) if self.name[-1].isdigit() else 0.0, float(number), versus={})
        found["results"][0]["finished_ratio"] = self.jobs.finished.get(self.name.removeprefix("evaluation of "), 1.0)
        found["results"][0]["kl"] = None
        return EvaluationReport.model_validate(found)

    def read_artifact(self, name: str) -> bytes:
        step = next(step for step in self.jobs.chain.steps() if step.name == self.name)
        return RecordedJob(step).read_artifact(name)

    def dataset_check(self) -> Any:
        return RecordedJob(self.jobs.chain.checks[0]).dataset_check()

    ledger = RecordedJob.ledger
    ledger_text = RecordedJob.ledger_text


@dataclass
class Gateway:
    jobs: Jobs


def run(whole: Recipe, **jobs: Any) -> tuple[Jobs, Any, list[str]]:
    chain = make_chain(whole, FOUND)
    found, told = Jobs(chain, **jobs), []
    done = carry_out(cast(Client, Gateway(found)), whole, chain, told=lambda name, _: told.append(name))
    return found, done, told


def test_all_jobs_are_asked_for_before_any_is_waited_for() -> None:
    jobs, _, told = run(recipe(policies=[{"name": "own", "rounds": 2}]))

    assert jobs.asked == [step.name for step in jobs.chain.steps()]
    assert sorted(told) == sorted(jobs.asked)


def test_checkpoints_are_evaluated_as_they_come_and_those_that_nobody_saw_at_the_end() -> None:
    whole = recipe(
        policies=[{"method": "dpo"}],
        training={"checkpoint_every_steps": 2},
        evaluation={"evaluate_checkpoints": True},
    )

    jobs, done, told = run(whole, checkpoints=(3, 2, 4, 8), kept=(2, 6, 8))

    # Step 3 is of an attempt that was cut short, 4 was not kept, 6 was not seen, and 8 is what the training leaves.
    assert list(done.checkpoints["dpo"]) == [(1, 2), (1, 6)]
    assert [name for name in jobs.asked if "step" in name] == [
        "evaluation of dpo at step 2",
        "evaluation of dpo at step 6",
    ]
    assert told[-4:-2] == ["evaluation of dpo at step 2", "evaluation of dpo at step 6"]


STOPPING = {
    "guard": "stop",
    "evaluation": {"metrics": ["words"], "compared_by": "words"},
    "policies": [{"name": "own", "rounds": 3}],
}


@pytest.mark.parametrize(
    ("doubtful", "kept", "asked", "said"),
    [
        ("own, round 2", 1, 2, "Round 1 is what stands"),
        ("own, round 1", 0, 1, "The start is what stands"),
    ],
)
def test_rounds_end_where_the_reward_is_not_to_be_believed(doubtful: str, kept: int, asked: int, said: str) -> None:
    whole = recipe(**STOPPING)

    jobs, done, _ = run(whole, finished={doubtful: 0.5})
    verdict = read_verdict(whole, jobs.chain, done)

    (policy,) = verdict.policies
    assert [name for name in jobs.asked if "round" in name][-1] == f"evaluation of own, round {asked}"
    assert len(policy.rounds) == len(policy.training_job_ids) == asked
    assert policy.measured.round == (kept or None)
    assert policy.model_id == (f"model of own, round {kept}" if kept else FOUND.base.model_id)
    assert policy.stopped is not None
    assert said in policy.stopped
    assert "finished responses fell from 100% to 50%" in policy.stopped
    assert said in verdict.sentences[0]


def test_rounds_that_end_well_are_all_made() -> None:
    jobs, done, _ = run(recipe(**STOPPING))

    assert sorted(jobs.asked) == sorted(step.name for step in jobs.chain.steps())
    assert done.stopped == {}


def test_a_job_that_is_deleted_while_it_is_waited_for_is_named_with_what_to_do() -> None:
    with pytest.raises(NotFoundError, match=r"reward model \(job-.*\) was deleted meanwhile: ask for the recipe again"):
        run(recipe(), deleted=frozenset({"reward model"}))
