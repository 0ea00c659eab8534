"""What the jobs of a recipe have measured, as a verdict."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from madpo.evaluation.verdict import (
    Cost,
    DataFinding,
    Example,
    Measured,
    PolicyVerdict,
    Verdict,
    doubts,
)
from madpo.jobs.base import ModelReference
from madpo.types import JobKind, JobResult, JobState, content_from_json
from madpo_client.align.chain import CHECK_OF, Chain, Trained
from madpo_client.align.measured import measured
from madpo_client.align.pairs import pairs_that_mattered
from madpo_client.align.recipe import Recipe
from madpo_client.align.run import Done
from madpo_client.job import JobHandle

_EXAMPLES = 8


def read_verdict(recipe: Recipe, chain: Chain, done: Done) -> Verdict:
    """What the jobs have measured."""
    return _Reader(recipe, chain, done).verdict()


class _Reader:
    def __init__(self, recipe: Recipe, chain: Chain, done: Done) -> None:
        self._recipe, self._chain, self._done = recipe, chain, done
        self._metric = recipe.evaluation.compared_by

    def verdict(self) -> Verdict:
        recipe, chain, handles = self._recipe, self._chain, self._done.handles
        start = self._measured("start", handles[chain.start.name])
        policies = tuple(map(self._policy, chain.policies))
        pairs, notes = pairs_that_mattered(policies, handles)
        checked, unchecked = _data(chain, handles)
        warnings = [f"{name}: {text}" for name, each in handles.items() for text in _result(each).warnings]
        for policy in policies:
            warnings += doubts(policy.name, [start, *(policy.rounds or (policy.measured,))], self._metric)
        return Verdict(
            name=recipe.name,
            reward_model=_reward_model(recipe, chain, handles),
            start=start,
            policies=policies,
            metric=self._metric,
            examples=tuple(_examples(policies, start, handles, self._metric)),
            pairs=tuple(pairs),
            data=tuple(checked),
            warnings=(*warnings, *unchecked, *notes),
            cost=_cost(self._all_jobs().values()),
            jobs={name: handle.id for name, handle in self._all_jobs().items()},
        )

    def _all_jobs(self) -> dict[str, JobHandle]:
        jobs = dict(self._done.handles)
        for policy in self._chain.policies:
            for (number, step), handle in self._done.checkpoints.get(policy.name, {}).items():
                jobs[policy.checkpoint_evaluations[number - 1](step).name] = handle
        return jobs

    def _policy(self, policy: Trained) -> PolicyVerdict:
        handles, in_rounds = self._done.handles, bool(policy.samplings)
        evaluations = self._done.evaluations(policy)
        measured = [
            self._measured(policy.name, handles[step.name], number if in_rounds else None)
            for number, step in enumerate(evaluations, start=1)
        ]
        checkpoints = [
            self._measured(f"{policy.name} at step {step}", handle, number if in_rounds else None, step)
            for (number, step), handle in sorted(self._done.checkpoints.get(policy.name, {}).items())
        ]
        start = self._measured(policy.name, handles[self._chain.start.name])
        kept, reason = self._done.kept(policy), self._done.stopped.get(policy.name)
        return PolicyVerdict(
            measured=[start, *measured][kept],
            rounds=tuple(measured) if in_rounds else (),
            checkpoints=tuple(checkpoints),
            stopped=reason and f"{reason}. {'The start' if kept == 0 else f'Round {kept}'} is what stands",
            method=policy.method,
            params=dict(policy.params),
            seed=policy.seed,
            model_id=_result(handles[policy.trainings[kept - 1].name]).model_id if kept else self._start_id(),
            training_job_ids=tuple(handles[step.name].id for step in policy.trainings[: len(evaluations)]),
        )

    def _start_id(self) -> str | None:
        model: ModelReference = self._chain.start.spec.model  # type: ignore[attr-defined]
        by_id = {handle.id: handle for handle in self._done.handles.values()}
        return model.model_id or _result(by_id[str(model.job_id)]).model_id

    def _measured(
        self, name: str, handle: JobHandle, round_number: int | None = None, step: int | None = None
    ) -> Measured:
        return measured(self._chain, handle, name=name, metric=self._metric, round_number=round_number, step=step)


def _data(chain: Chain, handles: Mapping[str, JobHandle]) -> tuple[list[DataFinding], list[str]]:
    """What the checks found that a person should look at; and what says that one found nothing because it failed."""
    found: list[DataFinding] = []
    missing: list[str] = []
    for check in chain.checks:
        handle = handles[check.name]
        if handle.state is not JobState.SUCCEEDED:
            missing.append(
                f"{check.name}: it did not succeed ({handle.job.reason}), so that nothing is known of the data"
            )
            continue
        found += [
            DataFinding(
                dataset=check.name.removeprefix(CHECK_OF),
                severity=finding.severity,
                title=finding.title,
                count=finding.count,
                rows=finding.rows,
                advice=finding.advice,
            )
            for finding in handle.dataset_check().findings
        ]
    return found, missing


def _reward_model(recipe: Recipe, chain: Chain, handles: Mapping[str, JobHandle]) -> str:
    if chain.reward_model is None:
        return str(recipe.reward_model.use)
    handle = handles[chain.reward_model.name]
    accuracy = _result(handle).summary.get("eval", {}).get("accuracy")
    held_out = "" if accuracy is None else f", right on {accuracy:.1%} of the held-out pairs"
    return f"trained here ({handle.id}{held_out})"


def _examples(
    policies: Sequence[PolicyVerdict], start: Measured, handles: Mapping[str, JobHandle], metric: str
) -> Iterator[Example]:
    """First responses to the first prompts, of the start and all policies."""
    by_id = {handle.id: handle for handle in handles.values()}
    shown = {"start": start} | {policy.name: policy.measured for policy in policies}
    answers = {name: _first_answers(by_id[each.evaluation_job_id]) for name, each in shown.items()}
    for row in list(zip(*answers.values(), strict=False))[:_EXAMPLES]:
        yield Example(
            prompt=_text(row[0]["prompt"]),
            responses={name: each["response"] for name, each in zip(answers, row, strict=True)},
            rewards={name: each["metrics"][metric] for name, each in zip(answers, row, strict=True)},
        )


def _first_answers(handle: JobHandle) -> list[dict[str, Any]]:
    lines = map(json.loads, handle.read_artifact("generations.jsonl").splitlines())
    return [line for line in lines if line["sample"] == 0]


def _text(prompt: Any) -> str:
    content = content_from_json(prompt)
    return content if isinstance(content, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in content)


def _cost(handles: Iterable[JobHandle]) -> Cost:
    by_id = {handle.id: handle for handle in handles}  # of equal policies one job
    results = {job_id: _result(handle).summary for job_id, handle in by_id.items()}
    sampled = 0.0
    for job_id, handle in by_id.items():
        if handle.job.kind is JobKind.SAMPLING:
            sampled += results[job_id]["responses"] * results[job_id]["response_tokens"]
        elif handle.job.kind is JobKind.EVALUATION:
            report = handle.report()
            for result in report.results:
                sampled += report.prompts * report.samples_per_prompt * result.response_tokens.mean
    return Cost(
        job_seconds=sum((each.job.finish_time or 0.0) - (each.job.start_time or 0.0) for each in by_id.values()),
        training_seconds=sum(result.get("train_seconds", 0.0) for result in results.values()),
        sampled_tokens=round(sampled),
        trained_tokens=round(sum(map(_trained_tokens, results.values()))),
    )


def _trained_tokens(summary: Mapping[str, Any]) -> float:
    return float(summary.get("execution", {}).get("tokens_per_s", 0.0) * summary.get("train_seconds", 0.0))


def _result(handle: JobHandle) -> JobResult:
    return handle.job.result or JobResult()
