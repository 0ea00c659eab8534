"""The loop on the embedded stack: one recipe with rounds of the policy's own pairs, scored live; and its verdict."""

import json
import re
from pathlib import Path

import pytest
import yaml

from madpo.evaluation.verdict import Verdict
from madpo.types import JobKind
from madpo_client.cli import main
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_readme import run
from tests.e2e.test_training import preference_rows

LOOP = (Path(__file__).parents[2] / "docs" / "loop.md").read_text()

TRAINING = {"max_steps": 3, "checkpoint_every_steps": 2, "global_batch_size": 8, "max_tokens": 64}
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
    "evaluation": {
        "sampling": {"max_new_tokens": 8},
        "max_prompts": 6,
        "evaluate_checkpoints": True,
        "checkpoint_prompts": 1,
    },
}
JOBS = [
    "check of pairs",
    "check of held-out pairs",
    "reward model",
    "evaluation of start",
    "dpo",
    "evaluation of dpo",
] + [
    f"{before}iterated, round {number}{after}"
    for number in (1, 2)
    for before, after in (("", ": pairs"), ("", ""), ("evaluation of ", ""))
]
JOBS += [f"evaluation of {name} at step 2" for name in ("dpo", "iterated, round 1", "iterated, round 2")]


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
        assert verdict.cost.trained_tokens > 0
        assert [(each.round, each.step, each.prompts) for each in iterated.path] == [
            (1, 2, 1),
            (1, None, 2),
            (2, 2, 1),
            (2, None, 2),
        ]
        assert [pairs.policy for pairs in verdict.pairs] == ["iterated"]
        assert all(pair.chosen for pair in verdict.pairs[0].heaviest)
        page = (out / "verdict.html").read_text()
        assert all(f'id="{part}"' in page for part in ("policies", "frontier", "rounds", "pairs", "data", "cost"))

        # What was deleted meanwhile is made anew; nothing else is.
        client.jobs.delete(verdict.jobs["evaluation of iterated, round 2"])
        with pytest.raises(SystemExit):
            main()
        assert len(client.jobs.list()) == len(jobs)
        again = Verdict.model_validate_json((out / "verdict.json").read_bytes())
        assert again.model_copy(update={"cost": verdict.cost}) == verdict


def test_pairs_go_away_to_be_labelled_and_come_back(stack, recipe, tmp_path):
    """The commands of docs/loop.md, as they stand there, in a small size."""
    (block,) = (each for each in re.findall(r"```bash\n(.*?)```", LOOP, flags=re.DOTALL) if "least_sure" in each)
    sizes = {
        "--rule least_sure": "--max-new-tokens 8 --max-prompts 6 --set keep_unfinished=true",
        "train reward": "--max-steps 3 --batch-size 8 --max-tokens 64",
    }
    small = [" ".join([line, *(sizes[part] for part in sizes if part in line)]) for line in block.splitlines()]
    (place,) = [number for number, line in enumerate(small) if line.startswith("#")]
    pairs = preference_rows(30)
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    with stack.client() as client:
        base = client.models.upload(recipe.parent / "base", name="my-base")
        prompts = client.datasets.upload(pairs, name="my-prompts")
        training = TRAINING | {"seed": 5}
        client.jobs.train_reward(model=base, dataset=prompts, training=training, name="my-reward").wait()
        client.jobs.train_supervised(
            model=base,
            dataset=client.datasets.upload([{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]),
            training=training,
            name="my-policy",
        ).wait()

        # Stored before, it keeps the name that it had.
        small = [line.replace("my-base", base.model_id) for line in small]
        run(["bash", "-euo", "pipefail", "-c", "\n".join(small[:place])], folder=tmp_path, home=stack.home)
        taken = [json.loads(line) for line in (tmp_path / "to-label.jsonl").read_text().splitlines()]
        with (tmp_path / "labelled.jsonl").open("w") as labelled:
            for row in taken:
                better, worse = sorted((row["chosen"], row["rejected"]), key=len)
                labelled.write(json.dumps({"prompt": row["prompt"], "chosen": better, "rejected": worse}) + "\n")
        run(["bash", "-euo", "pipefail", "-c", "\n".join(small[place + 1 :])], folder=tmp_path, home=stack.home)

        assert client.datasets.get("union").rows == len(pairs) + len(taken) > len(pairs)
        assert client.models.get("my-reward-2").kind == "reward"


def test_a_dataset_is_scored_by_a_job(stack, recipe):
    with stack.client() as client:
        pairs = client.datasets.upload(recipe.parent / "pairs.jsonl")
        reward = client.jobs.list(kinds=[JobKind.REWARD_TRAINING])[-1]

        scored = client.jobs.score(dataset=pairs, reward_model=reward).wait()

        left = client.datasets.get(scored.result.dataset_id)
        assert (left.rows, "reward_margin" in left.columns) == (pairs.rows, True)
