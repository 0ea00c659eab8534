"""From what jobs have measured to a verdict."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import pytest

from madpo.data.check.report import CheckReport
from madpo.errors import NotFoundError
from madpo.evaluation.report import EvaluationReport
from madpo.types import Job, JobKind, JobResult, JobState
from madpo_client.align.chain import Chain, Step, make_chain
from madpo_client.align.read import read_verdict
from madpo_client.align.recipe import Recipe
from madpo_client.align.run import Done
from madpo_client.cli.verdict import show_verdict
from madpo_client.job import JobHandle
from tests.unit.client.align.test_chain import FOUND, recipe

SUMMARIES: dict[JobKind, dict[str, Any]] = {
    JobKind.REWARD_TRAINING: {"train_seconds": 2.0, "execution": {"tokens_per_s": 50.0}, "eval": {"accuracy": 0.8}},
    JobKind.POLICY_TRAINING: {"train_seconds": 3.0, "execution": {"tokens_per_s": 100.0}},
}


@dataclass
class RecordedJob:
    """A job's answers, as the SDK gives them."""

    step: Step
    scores: tuple[float, float] = (0.0, 0.0)
    """The metric, and the KL."""
    versus: Mapping[str, float] = field(default_factory=dict)
    state: JobState = JobState.SUCCEEDED
    findings: tuple[dict[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return self.step.job_id

    @property
    def job(self) -> Job:
        result = JobResult(model_id=f"model of {self.step.name}", summary=SUMMARIES.get(self.step.kind, {}))
        ended = result if self.state is JobState.SUCCEEDED else None
        return Job(
            self.id, self.step.kind, self.state, spec={}, result=ended, start_time=1.0, finish_time=5.0, reason="broken"
        )

    def report(self) -> EvaluationReport:
        return EvaluationReport.model_validate(evaluation(*self.scores, versus=self.versus))

    def dataset_check(self) -> CheckReport:
        return CheckReport.model_construct(findings=[Finding(**each) for each in self.findings])

    def read_artifact(self, name: str) -> bytes:
        assert name == "generations.jsonl"
        lines = [
            {
                "prompt": f"prompt {index}",
                "sample": sample,
                "response": f"{self.step.name} [b]says[/b] {sample}",
                "metrics": {"reward": 1.0, "words": 2.5},
            }
            for index in range(3)
            for sample in range(2)
        ]
        return "\n".join(map(json.dumps, lines)).encode()

    def ledger(self) -> pa.Table:
        rows = {
            "row": [1, 2, 3, 4, 1],
            "step": [1, 1, 2, 2, 3],
            "reward_margin": [2.0, -1.0, 0.5, None, 2.0],
            "weight": [1.2, 0.4, 1.1, 1.0, 1.3],
            "implicit_margin": [0.1, 0.2, 0.3, 0.4, 0.9],
            "loss": [0.6] * 5,
        }
        return pa.table(rows)

    def ledger_text(self, ledger: pa.Table) -> pa.Table:
        for name in ("prompt", "chosen", "rejected"):
            ledger = ledger.append_column(name, pa.array([f"{name} {row}" for row in ledger["row"].to_pylist()]))
        return ledger


@dataclass
class Finding:
    severity: str
    title: str
    count: int = 1
    rows: tuple[int, ...] = ()
    advice: str = ""


def around(value: float) -> dict[str, Any]:
    return {"mean": value, "std": 1.0, "ci": [value - 0.1, value + 0.1]}


def evaluation(score: float, kl: float, *, versus: Mapping[str, float]) -> dict[str, Any]:
    def against(difference: float) -> dict[str, Any]:
        ci = [difference - 0.2, difference + 0.05]
        compared = {"win_rate": 0.6, "win_rate_ci": [0.5, 0.7], "difference": difference, "difference_ci": ci}
        return {"words": compared, "reward": compared | {"difference": 9.0}}

    result = {
        "temperature": 1.0,
        "metrics": {"reward": around(2 * score), "words": around(score)},
        "kl": around(kl),
        "response_tokens": around(8.0),
        "finished_ratio": 1.0,
        "versus": {job: against(difference) for job, difference in versus.items()},
    }
    return {
        "name": "x",
        "model": {"model_id": "m"},
        "reference": {"model_id": "m"},
        "reward_model_id": "r",
        "sampling": {"samples_per_prompt": 2},
        "prompts": 4,
        "samples_per_prompt": 2,
        "results": [result],
        "implicit_reward_accuracy": None,
    }


EVALUATION = {"metrics": ["words"], "compared_by": "words", "evaluate_checkpoints": True}


@pytest.fixture
def asked() -> tuple[Recipe, Chain]:
    whole = recipe(policies=[{"method": "dpo"}, {"method": "madpo"}], evaluation=EVALUATION)
    return whole, make_chain(whole, FOUND)


def recorded(chain: Chain) -> dict[str, RecordedJob]:
    jobs = {step.name: RecordedJob(step) for step in chain.steps()}
    dpo, madpo = jobs["evaluation of dpo"], jobs["evaluation of madpo"]
    dpo.scores, dpo.versus = (1.5, 3.0), {chain.start.job_id: 1.5}
    madpo.scores, madpo.versus = (1.7, 4.0), {chain.start.job_id: 1.7, dpo.id: 0.1}
    return jobs


def done(chain: Chain, jobs: Mapping[str, RecordedJob]) -> Done:
    at = RecordedJob(chain.policies[1].checkpoint_evaluations[0](64), (0.8, 1.2))
    checkpoints = {"madpo": {(1, 64): cast(JobHandle, at)}}
    return Done(cast(dict[str, JobHandle], dict(jobs)), checkpoints)


def test_a_verdict_restates_what_the_jobs_measured(
    asked: tuple[Recipe, Chain], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, chain = asked
    jobs = recorded(chain)
    jobs["check of pairs"].findings = ({"severity": "warning", "title": "near", "count": 3, "rows": (4,)},)

    verdict = read_verdict(whole, chain, done(chain, jobs))

    dpo, madpo = verdict.policies
    assert verdict.metrics == ["words", "reward"]
    assert (dpo.measured.score("words").mean, dpo.measured.reward.mean) == (1.5, 3.0)
    assert madpo.measured.against_first is not None
    assert madpo.measured.against_first.difference == 0.1
    assert verdict.undecided == ["madpo from dpo"]
    assert [(each.step, each.prompts) for each in madpo.path] == [(64, 4), (None, 4)]
    assert verdict.jobs["evaluation of madpo at step 64"].startswith("job-")
    assert "right on 80.0% of the held-out pairs" in verdict.reward_model
    assert [(each.dataset, each.title, each.count) for each in verdict.data] == [("pairs", "near", 3)]
    assert verdict.examples[0].rewards["start"] == 2.5
    (pairs,) = verdict.pairs
    assert (pairs.policy, pairs.pairs, pairs.contradicted_ratio) == ("madpo", 4, 0.25)
    assert [pair.row for pair in pairs.heaviest] == [1, 3, 2]
    assert (pairs.heaviest[0].weight, pairs.heaviest[0].chosen) == (1.3, "chosen 1")
    assert [pair.row for pair in pairs.contradicted] == [2]
    # Two policies and a reward model; four evaluations of 4 prompts, 2 samples, 8 tokens.
    assert (verdict.cost.trained_tokens, verdict.cost.sampled_tokens) == (700, 256)
    assert verdict.cost.job_seconds == 4.0 * len(verdict.jobs)

    show_verdict(verdict)
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in verdict.sentences)


def test_a_check_that_failed_and_a_ledger_that_is_gone_leave_a_warning(asked: tuple[Recipe, Chain]) -> None:
    whole, chain = asked
    jobs = recorded(chain)
    jobs["check of pairs"].state = JobState.FAILED

    def gone(_: pa.Table) -> pa.Table:
        raise NotFoundError("the dataset was deleted")

    jobs["madpo"].ledger_text = gone  # type: ignore[method-assign]

    verdict = read_verdict(whole, chain, done(chain, jobs))

    assert verdict.pairs == ()
    assert any("check of pairs: it did not succeed (broken)" in warning for warning in verdict.warnings)
    assert any("not shown: the dataset was deleted" in warning for warning in verdict.warnings)
