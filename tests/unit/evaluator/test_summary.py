"""What a report says follows from the generations, and its files hold whatever the texts are."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from madpo.evaluation.report import EvaluatedModel, EvaluationReport
from madpo.jobs.sampling import SamplingParameters
from madpo.types import Content, Message
from madpo_evaluator.generations import Evaluation, Generation, write_generations
from madpo_evaluator.plots import write_plots
from madpo_evaluator.summary import make_report, summarize, write_samples

CHAT: Content = (Message("user", "why?"),)


def evaluation(
    rewards: Mapping[float, list[list[float]]], *, name: str = "ours", metric: str = "reward", kl: float | None = 0.5
) -> Evaluation:
    """Rewards [prompts, samples] by temperature; a response has as many tokens as its prompt's index plus one."""
    samples = len(next(iter(rewards.values()))[0])
    sampling = SamplingParameters(temperatures=tuple(rewards), samples_per_prompt=samples)
    generations = [
        Generation(
            index,
            CHAT if index else "why",
            sample,
            temperature,
            "so ```",
            index + 1,
            sample == 0,
            kl,
            metrics={metric: value},
        )
        for temperature, prompts in rewards.items()
        for index, values in enumerate(prompts)
        for sample, value in enumerate(values)
    ]
    return Evaluation(name, sampling, "model-1", generations)


OURS = evaluation({1.0: [[1.0, 2.0], [3.0, 6.0]], 0.5: [[1.0, 1.0], [2.0, 2.0]]})
THEIRS = evaluation({1.0: [[0.0, 2.0], [4.0, 2.0]], 0.5: [[0.0, 0.0], [0.0, 0.0]]}, name="theirs")


def test_each_temperature_has_its_own_figures() -> None:
    hot, cold = summarize(OURS, {})

    assert (hot.temperature, hot.metrics["reward"].mean, cold.metrics["reward"].mean) == (1.0, 3.0, 1.5)
    assert hot.kl is not None
    assert (hot.kl.mean, hot.response_tokens.mean, hot.finished_ratio) == (0.5, 1.5, 0.5)


def test_a_baseline_is_compared_at_the_same_temperature() -> None:
    hot, cold = summarize(OURS, {"job-b": THEIRS})

    assert (hot.versus["job-b"]["reward"].win_rate, hot.versus["job-b"]["reward"].difference) == (0.625, 1.0)
    assert (cold.versus["job-b"]["reward"].win_rate, cold.versus["job-b"]["reward"].difference) == (1.0, 1.5)


def test_only_metrics_both_have_are_compared() -> None:
    other = evaluation({1.0: [[1.0], [2.0]]}, metric="words")

    assert summarize(other, {"job-b": evaluation({1.0: [[1.0], [2.0]]})})[0].versus == {"job-b": {}}


def test_without_a_reference_there_is_no_kl() -> None:
    assert summarize(evaluation({1.0: [[1.0]]}, kl=None), {})[0].kl is None


def test_a_report_is_plain_json(tmp_path: Path) -> None:
    results = summarize(OURS, {"job-b": THEIRS})
    written = make_report(
        OURS, results, model=EvaluatedModel(model_id="m"), reference=None, implicit_reward_accuracy=None
    )
    (tmp_path / "report.json").write_text(written.to_json())
    write_generations(OURS.generations, tmp_path / "generations.jsonl")

    assert EvaluationReport.from_json((tmp_path / "report.json").read_bytes()) == written
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["model"], report["reference"]) == ({"model_id": "m"}, None)
    assert set(report["results"][0]) == {
        "temperature",
        "metrics",
        "kl",
        "response_tokens",
        "finished_ratio",
        "versus",
        "judged",
    }
    assert set(report["results"][0]["metrics"]["reward"]) == {"mean", "std", "ci"}
    assert (report["prompts"], report["samples_per_prompt"], report["implicit_reward_accuracy"]) == (2, 2, None)
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert rows[2] == {
        "prompt_index": 1,
        "prompt": [{"role": "user", "content": "why?"}],
        "sample": 0,
        "temperature": 1.0,
        "response": "so ```",
        "tokens": 2,
        "finished": True,
        "kl": 0.5,
        "metrics": {"reward": 3.0},
    }


def test_samples_stand_next_to_the_baselines_and_cannot_break_out_of_their_fences(tmp_path: Path) -> None:
    write_samples(tmp_path, OURS, {"job-b": THEIRS})

    text = (tmp_path / "samples.md").read_text()
    assert "**ours** (reward 1, KL 0.5 nats, 1 tokens)\n\n````text\nso ```\n````" in text
    assert "**baseline theirs** (reward 0, KL 0.5 nats, 1 tokens)" in text
    assert "```text\nuser: why?\n```" in text


@pytest.mark.parametrize("value", [0.0, 1.0, 2.5])
def test_plots_are_drawn_even_when_all_responses_are_alike(tmp_path: Path, value: float) -> None:
    alike = evaluation({1.0: np.full((3, 2), value).tolist()})

    write_plots(tmp_path, [alike, alike])

    pngs = {path.name: path.read_bytes()[:8] for path in tmp_path.iterdir()}
    assert pngs == dict.fromkeys(["metrics.png", "response_tokens.png", "frontier.png"], b"\x89PNG\r\n\x1a\n")


def test_plots_leave_out_what_was_not_measured(tmp_path: Path) -> None:
    write_plots(tmp_path, [evaluation({1.0: [[1.0]]}, kl=None)])

    assert {path.name for path in tmp_path.iterdir()} == {"metrics.png", "response_tokens.png"}
