"""The toy reviews: language, oracle, base model, pairs, and how a demo compares policies."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from madpo.errors import InvalidArgumentError
from madpo.evaluation.report import EvaluationReport
from madpo.types import Job, JobKind, JobResult, JobState, Message
from madpo_client.job import JobHandle
from madpo_examples.comparison import Estimate, PolicyRow, verdict
from madpo_examples.demo_report import write_report
from madpo_examples.experiment import Jobs
from madpo_examples.stages import Stages
from madpo_examples.toy_reviews.demo import SCALES, Data, _experiment
from madpo_examples.toy_reviews.language import (
    PROMPT_WORDS,
    grammatical_metric,
    is_grammatical,
    negative_openings,
    reward_metric,
    split_review,
    true_reward,
    vocabulary,
    write_review,
)
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_base_model, make_tokenizer
from madpo_examples.toy_reviews.preferences import Candidates, candidate_pairs, noiseless_label, noisy_label

REVIEW = "a 1980s drama . the plot is not weak . i loved the very good score ."


class All:
    """Contains everything."""

    def __contains__(self, item: object) -> bool:
        return True


def some_reviews(count: int) -> list[str]:
    rng = random.Random(0)
    return [write_review(rng) for _ in range(count)]


def test_every_written_review_is_grammatical_and_uses_the_vocabulary() -> None:
    reviews = some_reviews(2000)
    assert all(map(is_grammatical, reviews))
    assert {word for review in reviews for word in review.split()} == set(vocabulary())


@pytest.mark.parametrize(
    "text",
    [
        "a 1980s drama . the plot is weak .",  # one clause
        "a 1980s drama ." + " the plot is weak ." * 5,
        REVIEW.removesuffix(" ."),
        REVIEW + " ",
        REVIEW.replace("loved", "good"),
        REVIEW.replace("1980s drama", "drama 1980s"),
        REVIEW.replace("not weak", "very long"),  # neutral words are never modified
        REVIEW.replace("not weak", "not very weak"),
        "",
    ],
)
def test_what_the_language_cannot_write_is_not_grammatical(text: str) -> None:
    assert is_grammatical(REVIEW)
    assert not is_grammatical(text)


@pytest.mark.parametrize(
    ("text", "valence"),
    [
        ("the plot is good .", 1.0),
        ("the plot is awful .", -2.0),
        ("the plot is not weak .", 0.75),
        ("the plot is hardly superb .", -1.0),
        ("my wife hated the truly terrible set .", -2.0 - 3.0),
        (REVIEW, 0.75 + 2.0 + 1.5),
        ("very . good", 1.0),  # a modifier scales only the word right after it
        ("something else entirely", 0.0),
        ("", 0.0),
    ],
)
def test_reward_is_the_squashed_sum_of_valences(text: str, valence: float) -> None:
    expected = 6.0 * (1.0 / (1.0 + math.exp(-valence / 2.0)) - 0.5)
    assert true_reward(text) == pytest.approx(expected, abs=1e-12)


def test_rewards_of_reviews_are_balanced_and_spread() -> None:
    rewards = [true_reward(review) for review in some_reviews(5000)]
    mean = sum(rewards) / len(rewards)
    spread = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    assert abs(mean) < 0.1
    assert 1.7 < spread < 2.0
    assert abs(true_reward("superb " * 1000)) <= 3.0


def test_prompt_and_rest_make_up_the_review() -> None:
    prompt, rest = split_review(REVIEW)
    assert prompt == "a 1980s drama . the plot"
    assert f"{prompt} {rest}" == REVIEW


def test_openings_are_six_words_each_comes_once_and_the_excluded_stay_away() -> None:
    first = negative_openings(50, random.Random(1))
    second = negative_openings(200, random.Random(1), exclude=set(first))
    assert len(set(second)) == 200
    assert {len(prompt.split()) for prompt in first} == {PROMPT_WORDS}
    assert not set(first) & set(second)


def test_openings_come_from_negative_reviews() -> None:
    openings = negative_openings(300, random.Random(0))
    hated, loved = (sum(prompt.endswith(f"i {verb}") for prompt in openings) for verb in ("hated", "loved"))
    assert hated > 2 * loved


def test_more_openings_than_the_language_has_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="ask for fewer"):
        negative_openings(3, random.Random(0), exclude=All())


def test_metrics_judge_prompt_and_response_together() -> None:
    prompt, rest = split_review(REVIEW)
    assert reward_metric([prompt, prompt], [rest, "."]) == [true_reward(REVIEW), 0.0]
    assert grammatical_metric([prompt, prompt], [rest, "."]) == [1.0, 0.0]


def test_metrics_refuse_chat_prompts() -> None:
    with pytest.raises(InvalidArgumentError, match="plain-text"):
        reward_metric([(Message("user", "hello"),)], ["."])


def test_the_language_is_importable_without_torch() -> None:
    code = "import sys, madpo_examples.toy_reviews.language; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_has_one_token_a_word_and_decodes_what_it_encodes() -> None:
    tokenizer = make_tokenizer()
    prompt, rest = split_review(REVIEW)
    prompt_ids = tokenizer(prompt).input_ids
    rest_ids = tokenizer(rest, add_special_tokens=False).input_ids
    assert prompt_ids[0] == tokenizer.bos_token_id
    assert len(prompt_ids) == PROMPT_WORDS + 1
    assert tokenizer.decode(prompt_ids + rest_ids, skip_special_tokens=True) == REVIEW
    assert max(len(review.split()) for review in some_reviews(5000)) + 2 <= MAX_TOKENS


def test_base_model_is_a_loadable_directory_that_depends_on_the_seed(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        make_base_model(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert first == again
    assert first != other
    assert 200_000 < model.num_parameters() < 300_000
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer(REVIEW).input_ids == make_tokenizer()(REVIEW).input_ids


def generations(prompt_index: int, *responses: str, finished: bool = True) -> list[str]:
    return [
        json.dumps(
            {
                "prompt_index": prompt_index,
                "prompt": "a 1980s drama . the plot",
                "sample": sample,
                "response": response,
                "finished": finished,
            }
        )
        for sample, response in enumerate(responses)
    ]


def test_pairs_leave_out_empty_cut_off_ungrammatical_and_equal_responses() -> None:
    whole = ("is good . it has a good set .", "is weak . it has a good set .")
    lines = [
        *generations(0, *whole, whole[0], whole[0]),
        *generations(1, "", whole[0]),
        *generations(2, whole[0], "is", finished=False),
        *generations(3, whole[0], "is good . it has has a set ."),
    ]
    (pair,) = candidate_pairs(lines)
    assert pair.responses == whole
    assert pair.rewards == (3.0 * math.tanh(0.5), 0.0)


def test_noisy_labels_follow_bradley_terry() -> None:
    pair = Candidates("p", ("better", "worse"), (1.2, 0.5))
    rng = random.Random(0)
    wins = sum(noisy_label(pair, rng)["chosen"] == "better" for _ in range(20_000))
    assert wins / 20_000 == pytest.approx(0.668187772168, abs=0.012)


def test_noiseless_label_chooses_the_higher_reward() -> None:
    label = noiseless_label(Candidates("p", ("worse", "better"), (-1.0, 0.5)))
    assert label == {"prompt": "p", "chosen": "better", "rejected": "worse"}


def row(name: str, *, kl: Estimate, difference: Estimate | None = None) -> PolicyRow:
    zero = Estimate(0.0, (-0.1, 0.1))
    return PolicyRow(name, zero, zero, kl, win_rate=None, difference_to_dpo=difference)


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.02, 0.22), "ahead"), ((-0.02, 0.22), "not distinguishable"), ((-0.22, -0.02), "behind")],
)
def test_verdict_follows_the_interval(interval: tuple[float, float], words: str) -> None:
    near = Estimate(3.0, (2.8, 3.2))
    rows = [row("sft", kl=near), row("dpo", kl=near), row("madpo", kl=near, difference=Estimate(0.1, interval))]
    sentence = verdict(rows, reward="true reward")
    assert f": {words} on this single seed" in sentence
    assert f"95 % CI {interval[0]:+.2f} to {interval[1]:+.2f}" in sentence
    assert "intervals overlap" in sentence


def test_verdict_warns_where_the_policies_moved_differently_far() -> None:
    near, far = Estimate(3.0, (2.8, 3.2)), Estimate(5.0, (4.5, 5.5))
    rows = [row("sft", kl=near), row("dpo", kl=near), row("madpo", kl=far, difference=Estimate(0.1, (0.0, 0.2)))]
    assert "different distances" in verdict(rows, reward="true reward")


@dataclass
class RecordedJob:
    """A finished job's answers, as the SDK gives them."""

    id: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        result = JobResult(summary=self.summary)
        return Job(self.id, JobKind.POLICY_TRAINING, JobState.SUCCEEDED, spec={}, result=result)

    def report(self) -> EvaluationReport:
        return EvaluationReport.from_json(self.artifacts["report.json"])

    def read_artifact(self, name: str) -> bytes:
        return self.artifacts[name]


def recorded_evaluation(name: str, *, reward: float, kl: float, versus: Mapping[str, float]) -> RecordedJob:
    def around(value: float) -> dict[str, Any]:
        return {"mean": value, "std": 1.0, "ci": [value - 0.1, value + 0.1]}

    def against(difference: float) -> dict[str, Any]:
        return {
            "toy_reward": {
                "win_rate": 0.6,
                "win_rate_ci": [0.55, 0.65],
                "difference": difference,
                "difference_ci": [difference - 0.2, difference + 0.05],
            }
        }

    result = {
        "temperature": 1.0,
        "metrics": {"toy_reward": around(reward), "reward": around(2 * reward), "toy_grammatical": around(0.9)},
        "kl": around(kl),
        "response_tokens": around(8.0),
        "finished_ratio": 1.0,
        "versus": {job: against(difference) for job, difference in versus.items()},
    }
    samples = [
        {"prompt_index": index, "sample": sample, "prompt": f"prompt {index}", "response": f"{name} says [b]{sample}"}
        for index in range(4)
        for sample in range(2)
    ]
    report = {
        "name": name,
        "model": {"model_id": "m"},
        "reference": {"model_id": "m"},
        "reward_model_id": "r",
        "sampling": {"samples_per_prompt": 2},
        "prompts": 4,
        "samples_per_prompt": 2,
        "results": [result],
        "implicit_reward_accuracy": None,
    }
    return RecordedJob(
        f"evaluation-{name}",
        artifacts={
            "report.json": json.dumps(report).encode(),
            "generations.jsonl": "\n".join(map(json.dumps, samples)).encode(),
        },
    )


def recorded_policy(name: str, directory: Path) -> RecordedJob:
    margins = [-1.0, 0.5, 2.0, None] if name == "madpo" else [None] * 4
    columns = {"epoch": [0] * 4, "reward_margin": pa.array(margins, pa.float64()), "weight": [0.4, 1.1, 1.05, 1.0]}
    ledger = pa.table(columns)
    pq.write_table(ledger, directory / "ledger.parquet")
    steps = [
        {"step": step, "loss": 0.7 / step, "rewards/implicit_margin": 0.1 * step, "rewards/accuracy": 0.6}
        for step in range(1, 13)
    ]
    return RecordedJob(
        name,
        summary={"method": {"name": name, "params": {}}, "margins": {"scored_live": 3, "wait_share": 0.02}},
        artifacts={
            "metrics.jsonl": "\n".join(map(json.dumps, steps)).encode(),
            "ledger.parquet": (directory / "ledger.parquet").read_bytes(),
        },
    )


def test_report_restates_what_the_jobs_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = {"accuracy": 0.8, "ece": 0.03, "temperature": 0.9, "score_mean": 0.1, "score_std": 1.5}
    evaluations = {
        "sft": recorded_evaluation("sft", reward=0.0, kl=0.0, versus={}),
        "dpo": recorded_evaluation("dpo", reward=1.5, kl=3.0, versus={"evaluation-sft": 1.5}),
        "madpo": recorded_evaluation(
            "madpo", reward=1.7, kl=4.0, versus={"evaluation-sft": 1.7, "evaluation-dpo": 0.2}
        ),
    }
    policies = {name: recorded_policy(name, tmp_path) for name in ("dpo", "madpo")}
    on_the_way = {
        name: {1: recorded_evaluation(f"{name} at step 1", reward=0.8, kl=1.2, versus={})} for name in policies
    }
    jobs = cast(Jobs, Jobs(RecordedJob("rm", {"eval": held_out}), policies, evaluations, on_the_way))  # type: ignore[arg-type]
    data = Data(base=None, corpus=None, training_prompts=None, evaluation_prompts=None)  # type: ignore[arg-type]
    experiment = _experiment(SCALES["smoke"], data, cast(JobHandle, None), None, None)  # type: ignore[arg-type]

    write_report(
        Console(width=200), tmp_path, experiment=experiment, jobs=jobs, stages=Stages(Console()), settings={"seed": 0}
    )

    summary = json.loads((tmp_path / "demo.json").read_text())
    sft, dpo, madpo = summary["rows"]
    assert [line["name"] for line in summary["rows"]] == ["sft", "dpo", "madpo"]
    assert (sft["difference_to_dpo"], sft["difference_ci"]) == (-1.5, pytest.approx([-1.55, -1.3]))
    assert (dpo["difference_to_dpo"], dpo["win_rate"]) == (None, 0.6)
    assert (madpo["difference_to_dpo"], madpo["reward"], madpo["kl"], madpo["grammatical"]) == (0.2, 1.7, 4.0, 0.9)
    assert madpo["reward_model_score"] == 3.4
    assert summary["reward_model"]["accuracy_noiseless"] == 0.8
    assert summary["margins"]["wait_share"] == 0.02
    assert summary["frontier"]["dpo"] == [
        {
            "step": 1,
            "reward": 0.8,
            "reward_ci": pytest.approx([0.7, 0.9]),
            "kl": 1.2,
            "kl_ci": pytest.approx([1.1, 1.3]),
        }
    ]
    assert summary["seconds"]["total"] >= 0
    assert all(
        (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        for name in ("margins.png", "training.png", "frontier.png")
    )
    printed = capsys.readouterr().out
    assert "MADPO minus DPO is +0.20 (95 % CI +0.00 to +0.25)" in printed
    assert "madpo says [b]0" in printed  # text of a model is never taken for markup
