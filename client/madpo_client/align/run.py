"""Runs a recipe: what it names is uploaded or looked up, its jobs are asked for, waited for, and read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.evaluation.verdict import Cost, Example, Measured, PolicyVerdict, Verdict, doubts
from madpo.jobs.base import DatasetReference, ModelReference
from madpo.types import JobResult, JobState, content_from_json
from madpo_client.align.chain import Chain, Found, Trained, make_chain
from madpo_client.align.recipe import Recipe
from madpo_client.client import Client
from madpo_client.job import JobHandle
from madpo_client.references import dataset_reference

_EXAMPLES = 8
_UNKNOWN = "0" * 32


def planned(recipe: Recipe) -> Chain:
    """The jobs of a recipe over data that nobody has looked at: what they are, without the ids they would have.

    Raises:
        InvalidArgumentError: Something in it is wrong; names it.
    """
    model, dataset = ModelReference(model_id=f"model-{_UNKNOWN}"), DatasetReference(dataset_id=f"dataset-{_UNKNOWN}")
    found = Found(
        base=model,
        pairs=dataset,
        held_out=dataset if recipe.data.held_out else None,
        prompts=dataset,
        fresh_prompts=dataset,
        completions=dataset if recipe.data.completions else None,
        reward_model=model if recipe.reward_model.use else None,
    )
    return make_chain(recipe, found)


def find(client: Client, recipe: Recipe, *, directory: Path, progress: bool = False) -> Found:
    """Upload the files and directories of a recipe, and look up the rest.

    Args:
        client: Connected.
        recipe: What is wanted.
        directory: Paths in the recipe start there.
        progress: Count bytes on a terminal.

    Raises:
        InvalidArgumentError: A file is not there or holds wrong rows, or nothing is stood for; names the field.
    """

    def dataset(field: str, given: str | Sequence[str]) -> DatasetReference:
        try:
            paths = _paths([given] if isinstance(given, str) else given, directory)
            if paths:
                return dataset_reference(
                    client.datasets.upload(paths if len(paths) > 1 else paths[0], progress=progress)
                )
            stored = given if isinstance(given, str) else given[0]
            if stored.startswith("hub:"):
                return dataset_reference(client.datasets.upload(stored, progress=progress))
            return dataset_reference(client.datasets.get(stored))
        except (NotFoundError, InvalidArgumentError) as error:
            raise InvalidArgumentError.in_field(field, str(error)) from error

    def model(field: str, given: str) -> ModelReference:
        try:
            if paths := _paths([given], directory):
                return ModelReference(model_id=client.models.upload(paths[0], progress=progress).model_id)
            return ModelReference(model_id=client.models.get(given).model_id)
        except (NotFoundError, InvalidArgumentError) as error:
            raise InvalidArgumentError.in_field(field, str(error)) from error

    data = recipe.data
    pairs = dataset("data.pairs", data.pairs)
    held_out = None if data.held_out is None else dataset("data.held_out", data.held_out)
    return Found(
        base=model("base", recipe.base),
        pairs=pairs,
        held_out=held_out,
        prompts=(held_out or pairs) if data.prompts is None else dataset("data.prompts", data.prompts),
        fresh_prompts=pairs if recipe.fresh.prompts is None else dataset("fresh.prompts", recipe.fresh.prompts),
        completions=None if data.completions is None else dataset("data.completions", data.completions),
        reward_model=None if recipe.reward_model.use is None else model("reward_model.use", recipe.reward_model.use),
    )


def _paths(given: Sequence[str], directory: Path) -> list[Path]:
    """The files or directories that are meant; none where the text stands for something stored.

    Raises:
        InvalidArgumentError: Text that looks like a path leads nowhere.
    """
    paths = [directory / Path(text).expanduser() for text in given]
    there = [path.exists() for path in paths]
    if not given:
        raise InvalidArgumentError("it names no file")
    if all(there):
        return paths
    missing = next(text for text, is_there in zip(given, there, strict=True) if not is_there)
    if len(given) > 1 or missing.startswith((".", "/", "~")) or Path(missing).suffix in _SUFFIXES:
        raise InvalidArgumentError(f"there is no file {missing} in {directory}")
    return []


_SUFFIXES = {".jsonl", ".json", ".parquet", ".arrow", ".csv", ".gz", ".zst"}


def submit(client: Client, recipe: Recipe, chain: Chain) -> dict[str, JobHandle]:
    """Ask for all jobs.

    Those that were asked for before are the same; those that failed or were cancelled are taken up again.

    Returns:
        The jobs by the name of their step.
    """
    handles: dict[str, JobHandle] = {}
    for step in chain.steps():
        handle = client.jobs.create(
            step.kind,
            step.spec.model_dump(mode="json", exclude_unset=True),
            name=f"{recipe.name}: {step.name}",
            request_id=step.request_id,
        )
        if handle.state in (JobState.FAILED, JobState.CANCELLED):
            handle.resume()
        handles[step.name] = handle
    return handles


def read_verdict(recipe: Recipe, chain: Chain, handles: Mapping[str, JobHandle]) -> Verdict:
    """What the jobs have measured; all of them have succeeded."""
    start = _measured("start", handles[chain.start.name], chain)
    policies = tuple(_policy(each, handles, chain) for each in chain.policies)
    warnings = [f"{name}: {warning}" for name, handle in handles.items() for warning in _result(handle).warnings]
    measured = [start, *(each for policy in policies for each in policy.rounds or (policy.measured,))]
    for policy in policies:
        warnings += doubts(policy.name, [start, *(policy.rounds or (policy.measured,))])
    return Verdict(
        name=recipe.name,
        reward_model=_reward_model(recipe, chain, handles),
        start=start,
        policies=policies,
        examples=tuple(_examples(chain, handles)),
        warnings=tuple(warnings),
        cost=_cost(chain, handles, measured),
        jobs={name: handle.id for name, handle in handles.items()},
    )


def _policy(policy: Trained, handles: Mapping[str, JobHandle], chain: Chain) -> PolicyVerdict:
    measured = [_measured(policy.name, handles[step.name], chain) for step in policy.evaluations]
    return PolicyVerdict(
        measured=measured[-1],
        rounds=tuple(measured) if len(measured) > 1 else (),
        method=policy.method,
        params=dict(policy.params),
        seed=policy.seed,
        model_id=_result(handles[policy.trainings[-1].name]).model_id,
        training_job_ids=tuple(handles[step.name].id for step in policy.trainings),
    )


def _measured(name: str, handle: JobHandle, chain: Chain) -> Measured:
    report = handle.report()
    (result,) = report.results
    metrics = dict(result.metrics)
    first = chain.policies[0].evaluations[-1].job_id

    def against(job_id: str) -> Any:
        return result.versus.get(job_id, {}).get("reward")

    return Measured(
        name=name,
        evaluation_job_id=handle.id,
        reward=metrics.pop("reward"),
        metrics=metrics,
        kl=result.kl,
        response_tokens=result.response_tokens,
        finished_ratio=result.finished_ratio,
        accuracy=report.implicit_reward_accuracy,
        against_start=against(chain.start.job_id),
        against_first=against(first),
    )


def _reward_model(recipe: Recipe, chain: Chain, handles: Mapping[str, JobHandle]) -> str:
    if chain.reward_model is None:
        return str(recipe.reward_model.use)
    handle = handles[chain.reward_model.name]
    accuracy = _result(handle).summary.get("eval", {}).get("accuracy")
    held_out = "" if accuracy is None else f", right on {accuracy:.1%} of the held-out pairs"
    return f"trained here ({handle.id}{held_out})"


def _examples(chain: Chain, handles: Mapping[str, JobHandle]) -> Iterator[Example]:
    """First responses to the first prompts, of the start and all policies."""
    evaluations = {"start": chain.start} | {each.name: each.evaluations[-1] for each in chain.policies}
    answers = {name: _first_answers(handles[step.name]) for name, step in evaluations.items()}
    for row in list(zip(*answers.values(), strict=False))[:_EXAMPLES]:
        yield Example(
            prompt=_text(row[0]["prompt"]),
            responses={name: each["response"] for name, each in zip(answers, row, strict=True)},
            rewards={name: each["metrics"]["reward"] for name, each in zip(answers, row, strict=True)},
        )


def _first_answers(handle: JobHandle) -> list[dict[str, Any]]:
    lines = map(json.loads, handle.read_artifact("generations.jsonl").splitlines())
    return [line for line in lines if line["sample"] == 0]


def _text(prompt: Any) -> str:
    content = content_from_json(prompt)
    return content if isinstance(content, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in content)


def _cost(chain: Chain, handles: Mapping[str, JobHandle], measured: Sequence[Measured]) -> Cost:
    by_id = {handle.id: handle for handle in handles.values()}  # of equal policies one job
    sampled = {handles[step.name].id for policy in chain.policies for step in policy.samplings}
    samplings = [_result(by_id[job_id]).summary for job_id in sampled]
    evaluated = {each.evaluation_job_id: each.response_tokens.mean for each in measured}
    responses = {job_id: by_id[job_id].report() for job_id in evaluated}
    return Cost(
        job_seconds=sum((each.job.finish_time or 0.0) - (each.job.start_time or 0.0) for each in by_id.values()),
        training_seconds=sum(_result(each).summary.get("train_seconds", 0.0) for each in by_id.values()),
        sampled_tokens=round(
            sum(each["responses"] * each["response_tokens"] for each in samplings)
            + sum(report.prompts * report.samples_per_prompt * evaluated[job] for job, report in responses.items())
        ),
    )


def _result(handle: JobHandle) -> JobResult:
    assert handle.job.result is not None, "a job that succeeded has a result"
    return handle.job.result
