"""From recipes to jobs."""

from pathlib import Path
from typing import Any, cast

import pytest

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference
from madpo.types import JobKind
from madpo_client.align.chain import Chain, Found, make_chain
from madpo_client.align.found import find, planned
from madpo_client.align.recipe import Recipe, read_recipe
from madpo_client.cli.spec_values import read_spec
from madpo_client.client import Client

RECIPES = Path(__file__).parents[4] / "recipes"
FOUND = Found(
    base=ModelReference(model_id="model-" + "1" * 32),
    pairs=DatasetReference(dataset_id="dataset-" + "2" * 32),
    held_out=DatasetReference(dataset_id="dataset-" + "3" * 32),
    prompts=DatasetReference(dataset_id="dataset-" + "3" * 32),
    fresh_prompts=DatasetReference(dataset_id="dataset-" + "2" * 32),
    completions=None,
    reward_model=None,
)


def recipe(**parts: Any) -> Recipe:
    return read_recipe(Path("toy.yaml"), {"data": {"pairs": "pairs.jsonl"}, "base": "base", **parts})


def specs(chain: Chain) -> dict[str, Any]:
    return {step.name: step.spec.model_dump(mode="json", exclude_unset=True) for step in chain.steps()}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_right(path: Path) -> None:
    chain = planned(read_recipe(path, read_spec(path)))

    names = [step.name for step in chain.steps()]
    assert len(set(names)) == len(names) > 4


def test_each_job_stands_behind_those_it_waits_for_and_no_two_are_the_same() -> None:
    policies = [
        {"method": "dpo", "seeds": [0, 1]},
        {"method": "madpo", "betas": [0.1, 0.2]},
        {"name": "own", "rounds": 3},
    ]
    steps = list(make_chain(recipe(policies=policies), FOUND).steps())

    seen: set[str] = set()
    for step in steps:
        assert set(step.awaited) <= seen, step.name
        seen.add(step.job_id)
    assert len(seen) == len(steps) == 2 + 2 + 2 * 2 + 2 * 2 + 3 * 3


def test_a_job_is_the_same_as_long_as_all_it_builds_on_is() -> None:
    def ids(**parts: Any) -> dict[str, str]:
        return {step.name: step.job_id for step in make_chain(recipe(**parts), FOUND).steps()}

    before = ids()
    assert ids() == before
    other_beta = ids(policies=[{"method": "dpo"}, {"method": "madpo", "params": {"beta": 0.3}}])
    other_reward = ids(reward_model={"training": {"seed": 1}})

    same = {name for name, job_id in before.items() if other_beta[name] == job_id}
    checks = {"check of pairs", "check of held-out pairs"}
    assert same == checks | {"reward model", "evaluation of start", "dpo", "evaluation of dpo"}
    # DPO reads no rewards, but its evaluation does.
    assert {name for name, job_id in before.items() if other_reward[name] == job_id} == checks | {"dpo"}


def test_a_round_samples_from_the_policy_before_it_and_trains_on_its_own_pairs() -> None:
    fresh = {"labelled_pairs": 7, "sampling": {"samples_per_prompt": 3}, "pairing": {"name": "random_pair"}}
    chain = make_chain(recipe(policies=[{"method": "madpo", "rounds": 2, "seeds": [4]}], fresh=fresh), FOUND)
    (policy,), said = chain.policies, specs(chain)

    first, second = (said[step.name] for step in policy.samplings)
    assert first["model"] == {"model_id": FOUND.base.model_id}
    assert second["model"] == {"job_id": policy.trainings[0].job_id}
    assert (first["sampling"]["seed"], second["sampling"]["seed"]) == (4001, 4002)
    assert first["mixed_pairs"] == 7
    assert first["mixed_dataset"] == {"dataset_id": FOUND.pairs.dataset_id}
    assert first["pairing"] == {"name": "random_pair", "params": {"pairs": 1}}
    last = said[policy.trainings[1].name]
    assert last["model"] == {"job_id": policy.trainings[0].job_id}
    assert last["dataset"] == {"job_id": policy.samplings[1].job_id}
    assert last["margin"] == {"source": "dataset"}
    assert last["training"]["seed"] == 4
    assert [step.kind for step in policy.evaluations] == [JobKind.EVALUATION] * 2
    assert said[policy.evaluations[1].name]["model"] == {"job_id": policy.trainings[1].job_id}


def test_margins_are_asked_live_on_given_pairs_and_only_by_methods_that_read_them() -> None:
    said = specs(make_chain(recipe(), FOUND))

    assert said["madpo"]["margin"]["reward_model"]["job_id"].startswith("job-")
    assert "margin" not in said["dpo"]
    assert said["dpo"]["eval_dataset"] == {"dataset_id": FOUND.held_out and FOUND.held_out.dataset_id}


def test_datasets_are_checked_as_they_will_be_trained_on() -> None:
    said = specs(make_chain(recipe(training={"max_tokens": 64, "overlong": "drop"}), FOUND))

    asked = {"model": {"model_id": FOUND.base.model_id}, "max_tokens": 64, "overlong": "drop"}
    held_out = {"dataset_id": FOUND.held_out and FOUND.held_out.dataset_id}
    assert said["check of pairs"] == asked | {
        "dataset": {"dataset_id": FOUND.pairs.dataset_id},
        "eval_dataset": held_out,
    }
    assert said["check of held-out pairs"] == asked | {"dataset": held_out}


def test_a_checkpoint_is_evaluated_as_the_policy_is_on_as_many_prompts_as_wanted() -> None:
    evaluation = {"evaluate_checkpoints": True, "checkpoint_prompts": 5, "max_prompts": 9, "metrics": ["words"]}
    chain = make_chain(recipe(policies=[{"method": "dpo"}], evaluation=evaluation), FOUND)
    (policy,) = chain.policies
    (at,) = policy.checkpoint_evaluations

    step = at(64)
    said, whole = step.spec.model_dump(mode="json"), policy.evaluations[-1].spec.model_dump(mode="json")
    assert step.name == "evaluation of dpo at step 64"
    assert said["model"] == {"model_id": None, "job_id": policy.trainings[0].job_id, "step": 64}
    assert (said.pop("max_prompts"), whole.pop("max_prompts")) == (5, 9)
    assert (said.pop("baseline_job_ids"), len(whole.pop("baseline_job_ids"))) == ([], 1)
    assert {name for name in said if said[name] != whole[name]} == {"model", "eval_dataset"}
    training = policy.trainings[0].spec.model_dump(mode="json")["training"]
    assert training["keep_checkpoints"] == 10_000


def test_how_many_checkpoints_are_kept_is_for_the_recipe_to_say() -> None:
    chain = make_chain(recipe(training={"keep_checkpoints": 3}, evaluation={"evaluate_checkpoints": True}), FOUND)

    assert specs(chain)["dpo"]["training"]["keep_checkpoints"] == 3


def test_a_base_is_fine_tuned_first_where_there_are_completions() -> None:
    found = Found(
        FOUND.base,
        FOUND.pairs,
        None,
        FOUND.pairs,
        FOUND.pairs,
        DatasetReference(dataset_id="dataset-" + "4" * 32),
        None,
    )
    chain = make_chain(recipe(supervised={"max_steps": 5}), found)
    supervised, reward = chain.preparing

    assert supervised.kind is JobKind.SUPERVISED_TRAINING
    said = specs(chain)
    assert said["supervised"]["training"] == {"max_steps": 5}
    for name in ("reward model", "dpo", "madpo", "evaluation of start"):
        assert said[name]["model"] == {"job_id": supervised.job_id}
    assert said["evaluation of madpo"]["reference"] == {"job_id": supervised.job_id}
    assert said["evaluation of madpo"]["reward_model"] == {"job_id": reward.job_id}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"policies": [{"method": "dpoo"}]}, r"policies\.dpoo\.method\.name: there is no method 'dpoo'"),
        ({"policies": [{"params": {"gamma": 1}}]}, r"policies\.madpo\.method\.params\.gamma: .*no such parameter"),
        ({"policies": [{"method": "dpo"}, {"method": "dpo"}]}, "two policies are called dpo: give each a name"),
        ({"policies": []}, "give at least one policy"),
        ({"policys": []}, r"policys: there is no such field; did you mean policies"),
        ({"evaluation": {"sampling": {"temperatures": [0.5, 1.0]}}}, "a verdict is about one temperature"),
        ({"evaluation": {"compared_by": "words"}}, "compared_by is reward or one of metrics, got words"),
        (
            {"policies": [{"rounds": 1}], "fresh": {"pairing": {"name": "best"}}},
            r"fresh\.pairing\.name: there is no rule",
        ),
        ({"policies": [{"rounds": 1}], "fresh": {"sampling": {"samples_per_prompt": 1}}}, "a pair needs two"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named_before_anything_is_asked_for(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        planned(recipe(**parts))


@pytest.mark.parametrize(
    "policies",
    [
        [{"method": "madpo", "seeds": [0, 0]}],
        [{"method": "madpo", "betas": [0.1, 0.10000001]}],
        [{"method": "madpo", "seeds": [0, 1]}, {"name": "madpo, seed 1"}],
        [{"name": "start"}],
        [{"name": "start", "rounds": 2}],
        [{"name": "reward model"}],
    ],
    ids=["a seed twice", "betas that read alike", "a name for another's seed", "start", "start in rounds", "a job"],
)
def test_no_two_policies_or_jobs_have_one_name(policies: list[Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="would be the name of two"):
        make_chain(recipe(policies=policies), FOUND)


def test_what_a_round_does_not_say_of_its_sampling_keeps_its_default() -> None:
    chain = make_chain(recipe(policies=[{"rounds": 1}], fresh={"sampling": {"max_new_tokens": 9}}), FOUND)

    said = specs(chain)[chain.policies[0].samplings[0].name]["sampling"]
    assert (said["samples_per_prompt"], said["max_new_tokens"]) == (4, 9)


def test_a_first_policy_in_rounds_cannot_be_stopped_where_others_are_compared_with_it() -> None:
    policies = [{"name": "own", "rounds": 2}, {"method": "dpo"}]

    with pytest.raises(InvalidArgumentError, match="give a policy without rounds first"):
        recipe(policies=policies, guard="stop")
    assert recipe(policies=policies[::-1], guard="stop").guard == "stop"


def test_a_policy_without_seeds_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="seeds"):
        recipe(policies=[{"method": "dpo"}, {"method": "madpo", "seeds": []}])


class _Stored:
    """Datasets and models of which none is there."""

    def get(self, given: str) -> Any:
        raise NotFoundError(f"there is no {given}")


class _Nothing:
    datasets = models = _Stored()


@pytest.mark.parametrize("given", [["nowhere"], []], ids=["a name in a list", "an empty list"])
def test_data_that_is_not_there_is_named_by_its_field(tmp_path: Path, given: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"data\.pairs"):
        find(cast(Client, _Nothing()), recipe(data={"pairs": given}), directory=tmp_path)
