"""What a demo leaves: a table, a verdict and samples on the terminal, three plots and `demo.json` in a directory."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from madpo.types import Job
from madpo_examples.comparison import Evaluation, FrontierPoint, PolicyRow, compare, json_lines, verdict
from madpo_examples.experiment import Experiment, Jobs
from madpo_examples.plots import plot_frontier, plot_margins, plot_training
from madpo_examples.stages import Stages


def write_report(
    console: Console,
    out: Path,
    *,
    experiment: Experiment,
    jobs: Jobs,
    stages: Stages,
    settings: Mapping[str, Any],
) -> None:
    """Print and write the results of an experiment whose jobs have all succeeded.

    Args:
        console: Where table, verdict and samples go.
        out: An existing directory for `margins.png`, `training.png`, `frontier.png` and `demo.json`.
        experiment: What was run.
        jobs: Its jobs.
        stages: Carries the seconds.
        settings: Recorded in `demo.json`.
    """
    evaluations = {name: Evaluation.of(handle) for name, handle in jobs.evaluations.items()}
    (metric, reward), *shares = experiment.metrics.items()
    rows = compare(evaluations, metric=metric, shares=dict(shares))
    plot_margins(jobs.policies["madpo"].read_artifact("ledger.parquet"), out / "margins.png")
    curves = {name: list(json_lines(handle.read_artifact("metrics.jsonl"))) for name, handle in jobs.policies.items()}
    plot_training(curves, out / "training.png")
    frontier = {
        name: [FrontierPoint.of(step, Evaluation.of(handle), metric=metric) for step, handle in checkpoints.items()]
        for name, checkpoints in jobs.checkpoint_evaluations.items()
    }
    plot_frontier(rows, frontier, out / "frontier.png", reward=reward)
    summary = _summary(rows, jobs, reward=reward)
    summary["frontier"] = {name: [point.to_json() for point in points] for name, points in frontier.items()}
    console.print(comparison_table(rows, reward=reward))
    console.print(summary["verdict"])
    console.print(_margin_sentence(summary["reward_model"], summary["margins"]))
    console.print(sample_table(evaluations))
    seconds = {"total": round(stages.total_s, 1), **stages.seconds}
    text = json.dumps({**summary, "seconds": seconds, "settings": settings}, indent=2, ensure_ascii=False)
    (out / "demo.json").write_text(text + "\n", encoding="utf-8")
    console.print(f"{seconds['total']} s in all. Plots and demo.json are in {out}")


def comparison_table(rows: Sequence[PolicyRow], *, reward: str) -> Table:
    """The rows as a table for the terminal."""
    reference = rows[0].name
    table = Table(box=SIMPLE, collapse_padding=True, caption="± is half of the 95 % confidence interval")
    headers = [f"mean\n{reward}", "minus DPO\n(paired)", f"KL to {reference}\n(nats)", f"win rate\nagainst {reference}"]
    table.add_column("policy")
    for header in [*headers, *rows[0].shares]:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        estimates = (row.reward, row.difference_to_dpo, row.kl, row.win_rate)
        cells = ["-" if estimate is None else str(estimate) for estimate in estimates]
        table.add_row(row.name, *cells, *[f"{share:.1%}" for share in row.shares.values()])
    return table


def sample_table(evaluations: Mapping[str, Evaluation], *, prompts: int = 3) -> Table:
    """The first sample to each of the first prompts, side by side over policies."""
    table = Table(title="Samples", box=SIMPLE)
    for header in ("prompt", "policy", "response"):
        table.add_column(header)
    for index in range(prompts):
        for position, (name, evaluation) in enumerate(evaluations.items(), start=1):
            sample = _first_sample(evaluation, index)
            prompt = _text(sample["prompt"]) if position == 1 else ""
            last = position == len(evaluations)
            table.add_row(escape(prompt), name, escape(sample["response"]), end_section=last)
    return table


def _summary(rows: Sequence[PolicyRow], jobs: Jobs, *, reward: str) -> dict[str, Any]:
    held_out, madpo = _result(jobs.reward.job)["eval"], _result(jobs.policies["madpo"].job)
    return {
        "rows": [row.to_json() for row in rows],
        "verdict": verdict(rows, reward=reward),
        "reward_model": {
            "accuracy_noiseless": held_out["accuracy"],
            "calibration": {"ece": held_out["ece"], "temperature": held_out["temperature"]},
            "mean": held_out["score_mean"],
            "std": held_out["score_std"],
        },
        "method": madpo["method"],
        "margins": madpo["margins"],
        "jobs": {
            "reward": jobs.reward.id,
            **{name: handle.id for name, handle in jobs.policies.items()},
            **{f"{name} evaluation": handle.id for name, handle in jobs.evaluations.items()},
        },
    }


def _result(job: Job) -> Mapping[str, Any]:
    assert job.result is not None, "a job that succeeded has a result"
    return job.result.summary


def _margin_sentence(reward_model: Mapping[str, Any], margins: Mapping[str, Any]) -> str:
    return (
        f"The reward model orders {reward_model['accuracy_noiseless']:.1%} of the held-out pairs as their noiseless "
        f"labels do. Live margins: {margins['scored_live']:.0f} pairs scored; waiting for them took "
        f"{margins['wait_share']:.1%} of MADPO's training time."
    )


def _first_sample(evaluation: Evaluation, prompt_index: int) -> Mapping[str, Any]:
    return next(
        sample for sample in evaluation.generations if sample["prompt_index"] == prompt_index and sample["sample"] == 0
    )


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
