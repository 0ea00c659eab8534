"""The loop on the embedded stack: one recipe with rounds of the policy's own pairs, scored live; and its verdict."""

import json

import pytest
import yaml

from madpo.evaluation.verdict import Verdict
from madpo.types import JobKind
from madpo_client.cli import main
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_training import preference_rows

TRAINING = {"max_steps": 3, "global_batch_size": 8, "max_tokens": 64}
RECIPE = {
    "data": {"pairs": "pairs.jsonl", "held_out": "held-out.jsonl"},
    "base": "base",
    "reward_model": {"training": TRAINING | {"max_steps": 6}},
    "training": TRAINING,
    "policies": [{"method": "dpo"}, {"name": "iterated", "method": "madpo", "rounds": 2}],
    "fresh": {
        "sampling": {"samples_per_prompt": 3, "max_new_tokens": 8},
        "keep_unfinished": True,
        "max_prompts": 8,
        "labelled_pairs": 4,
    },
    "evaluation": {"sampling": {"max_new_tokens": 8}, "max_prompts": 6},
}
JOBS = ["reward model", "evaluation of start", "dpo", "evaluation of dpo"] + [
    f"{before}iterated, round {number}{after}"
    for number in (1, 2)
    for before, after in (("", ": pairs"), ("", ""), ("evaluation of ", ""))
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack:
        yield stack


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipe")
    make_base_model(directory / "base")
    rows = preference_rows(60)
    for name, some in (("pairs", rows[:44]), ("held-out", rows[44:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    path = directory / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_a_recipe_ends_in_a_verdict_and_is_not_done_twice(stack, recipe, monkeypatch, capsys):
    with stack.client() as client:
        monkeypatch.setattr("madpo_client.cli.align.open_client", lambda context: stack.client())
        monkeypatch.setattr("sys.argv", ["madpo", "align", str(recipe)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0)
        out = recipe.parent / "toy-verdict"
        verdict = Verdict.model_validate_json((out / "verdict.json").read_bytes())
        printed = capsys.readouterr().out
        jobs = {job.job.display_name: job for job in client.jobs.list()}

        assert set(verdict.jobs) == set(JOBS)
        assert {name.removeprefix("toy: "): job.id for name, job in jobs.items()} == verdict.jobs
        dpo, iterated = verdict.policies
        assert (dpo.name, iterated.name, len(iterated.rounds)) == ("dpo", "iterated", 2)
        assert dpo.measured.against_first is None
        assert iterated.measured.against_first is not None
        assert iterated.measured.against_start is not None
        assert iterated.model_id == jobs["toy: iterated, round 2"].job.result.model_id
        first, second = (
            client.datasets.get(jobs[f"toy: iterated, round {n}: pairs"].job.result.dataset_id) for n in (1, 2)
        )
        assert first.dataset_id != second.dataset_id
        assert {"reward_margin", "chosen_reward", "rejected_reward"} <= set(first.columns)
        assert all(sentence in printed for sentence in verdict.sentences)
        assert verdict.cost.sampled_tokens > 0
        page = (out / "verdict.html").read_text()
        assert all(f'id="{part}"' in page for part in ("verdict", "policies", "frontier", "rounds", "examples", "cost"))

        with pytest.raises(SystemExit):
            main()
        assert len(client.jobs.list()) == len(jobs)
        assert Verdict.model_validate_json((out / "verdict.json").read_bytes()) == verdict


def test_a_dataset_is_scored_by_a_job(stack, recipe):
    with stack.client() as client:
        pairs = client.datasets.upload(recipe.parent / "pairs.jsonl")
        (reward,) = client.jobs.list(kinds=[JobKind.REWARD_TRAINING])

        scored = client.jobs.score(dataset=pairs, reward_model=reward).wait()

        left = client.datasets.get(scored.result.dataset_id)
        assert (left.rows, "reward_margin" in left.columns) == (pairs.rows, True)
