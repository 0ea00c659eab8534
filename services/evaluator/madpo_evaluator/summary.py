"""The figures of an evaluation, summed up: the report, the result of the job, and `samples.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from madpo.evaluation.report import (
    Accuracy,
    Estimate,
    EvaluatedModel,
    EvaluationReport,
    EvaluationResult,
    Judged,
    JudgeUse,
)
from madpo.types import Content
from madpo_evaluator.generations import Evaluation, Generation
from madpo_evaluator.judging.contests import Judgement
from madpo_evaluator.statistics import compare, estimate_mean

_SHOWN_PROMPTS = 20


def summarize(
    evaluation: Evaluation, baselines: Mapping[str, Evaluation], judgement: Judgement | None = None
) -> list[EvaluationResult]:
    """One result per temperature; baselines are compared on the metrics both have, and as the judge says."""
    return [_summarize(evaluation, temperature, baselines, judgement) for temperature in evaluation.temperatures]


def _summarize(
    evaluation: Evaluation, temperature: float, baselines: Mapping[str, Evaluation], judgement: Judgement | None
) -> EvaluationResult:
    values = {name: evaluation.metric(temperature, name) for name in evaluation.metric_names}
    versus = {
        job_id: {
            name: compare(values[name], baseline.metric(temperature, name))
            for name in evaluation.metric_names
            if name in baseline.metric_names
        }
        for job_id, baseline in baselines.items()
    }
    return EvaluationResult(
        temperature=temperature,
        metrics={name: estimate_mean(value) for name, value in values.items()},
        kl=estimate_kl(evaluation, temperature),
        response_tokens=estimate_mean(evaluation.values(temperature, lambda generation: generation.tokens)),
        finished_ratio=float(evaluation.values(temperature, lambda generation: generation.finished).mean()),
        versus=versus,
        judged=judgement.at(temperature) if judgement else {},
    )


def estimate_kl(evaluation: Evaluation, temperature: float) -> Estimate | None:
    """Mean KL to the reference in nats; None without a reference."""
    if not evaluation.has_kl:
        return None
    return estimate_mean(evaluation.values(temperature, lambda generation: generation.kl or 0.0))


def make_report(
    evaluation: Evaluation,
    results: Sequence[EvaluationResult],
    *,
    model: EvaluatedModel,
    reference: EvaluatedModel | None,
    implicit_reward_accuracy: Accuracy | None,
    skipped_rows: Sequence[int] = (),
    truncated_responses: int = 0,
    judge: JudgeUse | None = None,
) -> EvaluationReport:
    """The report of an evaluation.

    Args:
        evaluation: What was measured.
        results: From `summarize`.
        model: The policy.
        reference: What KL was measured to.
        implicit_reward_accuracy: On held-out pairs, when there are any.
        skipped_rows: Of prompts that left no room for a response.
        truncated_responses: That the reward model read only a part of.
        judge: Who compared, and what it took.
    """
    return EvaluationReport(
        name=evaluation.name,
        model=model,
        reference=reference,
        reward_model_id=evaluation.reward_model_id,
        sampling=evaluation.sampling,
        engine=evaluation.engine,
        prompts=len(evaluation.prompts),
        samples_per_prompt=evaluation.sampling.samples_per_prompt,
        results=tuple(results),
        implicit_reward_accuracy=implicit_reward_accuracy,
        skipped_rows=tuple(skipped_rows),
        truncated_responses=truncated_responses,
        judge=judge,
    )


def key_figures(results: Sequence[EvaluationResult], implicit_reward_accuracy: Accuracy | None) -> dict[str, Any]:
    """The summary a finished job carries: means by temperature."""
    return {
        "results": [
            {
                "temperature": result.temperature,
                **{name: estimate.mean for name, estimate in result.metrics.items()},
                "kl": result.kl.mean if result.kl else None,
                "response_tokens": result.response_tokens.mean,
                "finished_ratio": result.finished_ratio,
                **({"judged": {name: _rates(each) for name, each in result.judged.items()}} if result.judged else {}),
            }
            for result in results
        ],
        "implicit_reward_accuracy": implicit_reward_accuracy.accuracy if implicit_reward_accuracy else None,
    }


def _rates(judged: Judged) -> dict[str, float]:
    return {"win_rate": judged.win_rate, "length_controlled_win_rate": judged.length_controlled_win_rate}


def write_samples(path: Path, evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> None:
    """Write `samples.md`: the first responses to the first prompts, ours above the baselines'."""
    temperature = evaluation.temperatures[0]
    columns = [
        [generation for generation in each.at(temperature) if generation.sample == 0][:_SHOWN_PROMPTS]
        for each in (evaluation, *baselines.values())
    ]
    names = [evaluation.name or "this model", *(f"baseline {each.name}" for each in baselines.values())]
    lines = [f"# Samples at temperature {temperature:g}", ""]
    for row in zip(*columns, strict=True):
        lines += [f"## Prompt {row[0].prompt_index}", "", _fenced(_plain(row[0].prompt)), ""]
        for name, generation in zip(names, row, strict=True):
            lines += [f"**{name}** ({_figures(generation)})", "", _fenced(generation.response), ""]
    (path / "samples.md").write_text("\n".join(lines), encoding="utf-8")


def _plain(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in content)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _figures(generation: Generation) -> str:
    figures = [f"{name} {value:.3g}" for name, value in generation.metrics.items()]
    if generation.kl is not None:
        figures.append(f"KL {generation.kl:.3g} nats")
    figures.append(f"{generation.tokens} tokens" + ("" if generation.finished else ", cut off"))
    return ", ".join(figures)
