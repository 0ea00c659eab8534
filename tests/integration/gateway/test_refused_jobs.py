"""Jobs that are refused: every wrong field is named, and nothing is stored."""

from typing import Any

import pytest

from madpo.jobs.base import job_id_of
from tests.integration.gateway.messages import ref
from tests.integration.gateway.service import (
    NO_DATASET,
    NO_JOB,
    NO_MODEL,
    REWARD_CONFIG,
    Gateway,
    make_material,
    refusal,
)


async def test_a_wrong_spec_is_refused_with_every_wrong_field_and_nothing_is_stored(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    supervised = (
        await gateway.create(
            {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions)}},
            "good",
        )
    ).job_id
    policy, reward, pairs = {"model_id": ids.policy}, {"model_id": ids.reward}, ids.pairs
    training = {"model": policy, "dataset": ref(pairs), "margin": {"reward_model": reward}}
    sampling = {"model": policy, "prompt_dataset": ref(ids.prompts), "reward_model": reward}
    before = gateway.stored()
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({}, {"spec": "give one of"}),
        (
            {"supervised_training": {"dataset": ref("x")}},
            {".model": "required", ".dataset.dataset_id": "match"},
        ),
        (
            {"supervised_training": {"model": reward, "dataset": ref(pairs), "eval_dataset": ref(NO_DATASET)}},
            {
                ".model.model_id": "is a reward model; give a causal_lm model",
                ".dataset.dataset_id": "is a preference dataset; give a completion dataset",
                ".eval_dataset.dataset_id": "there is no dataset",
            },
        ),
        (
            {
                "supervised_training": {
                    "model": policy,
                    "dataset": ref(ids.completions),
                    "training": {"epochs": -1},
                }
            },
            {".training.epochs": "greater than 0"},
        ),
        (
            {"reward_training": {"model": {"model_id": NO_MODEL}, "dataset": ref(ids.prompts)}},
            {".model.model_id": "there is no model", ".dataset.dataset_id": "is a prompt dataset"},
        ),
        ({"policy_training": training | {"model": {"job_id": NO_JOB}}}, {".model.job_id": "there is no job"}),
        (
            {"policy_training": training | {"model": {"job_id": supervised, "step": 5}}},
            {".model.step": "has no checkpoint of step 5; it has none"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": {"job_id": supervised}}}},
            {".margin.reward_model.job_id": "is a supervised_training job; give one that trains a reward model"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": {"job_id": supervised, "step": 5}}}},
            {".margin.reward_model.step": "serves stored models only"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": policy}}},
            {".margin.reward_model.model_id": "is a causal_lm model; give a reward model"},
        ),
        ({"policy_training": training | {"method": {"name": "magic"}}}, {".method.name": "madpo"}),
        ({"sampling": sampling | {"pairing": {"name": "best_vs_worse"}}}, {".pairing.name": "mean best_vs_worst?"}),
        (
            {"sampling": sampling | {"pairing": {"name": "threshold", "params": {"margin": 0, "x": 1}}}},
            {".pairing.params.margin": "greater than 0", ".pairing.params.x": "no such parameter"},
        ),
        ({"sampling": sampling | {"sampling": {"samples_per_prompt": 1}}}, {"": "a pair needs two"}),
        ({"sampling": sampling | {"mixed_pairs": 3}}, {"": "mixed_pairs needs mixed_dataset"}),
        ({"sampling": sampling | {"reward_model": policy}}, {".reward_model.model_id": "give a reward model"}),
        (
            {"scoring": {"dataset": ref(ids.prompts), "reward_model": {"job_id": supervised}}},
            {".dataset.dataset_id": "is a prompt dataset", ".reward_model.job_id": "one that trains a reward model"},
        ),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": -1, "gamma": 1}}}},
            {".method.params.tau": "", ".method.params.gamma": ""},
        ),
        (
            {"policy_training": {"model": policy, "dataset": ref(pairs), "method": {"name": "madpo"}}},
            {".margin": "give reward_model, or source=dataset"},
        ),
        (
            {"policy_training": training | {"margin": {"source": "dataset"}}},
            {".margin.source": "has a margin; give reward_model"},
        ),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": "auto"}}}},
            {".eval_dataset": "tau would be found on held-out pairs, and none are given"},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": reward, "temperature": "fit"}}},
            {".eval_dataset": "temperature would be found on held-out pairs"},
        ),
        (
            {
                "policy_training": {
                    "model": policy,
                    "dataset": ref(ids.pairs_with_margins),
                    "eval_dataset": ref(pairs),
                    "margin": {"source": "dataset", "temperature": "fit"},
                    "method": {"name": "madpo", "params": {"tau": {"quantile": 0.9}}},
                }
            },
            {".eval_dataset": "temperature would be found on its margins, and not every row of it has one"},
        ),
        (
            {"policy_training": training | {"method": {"name": "madpo", "params": {"tau": {"quantile": 1.5}}}}},
            {".method.params.tau": 'must be a number > 0, {"quantile": q} with 0 < q < 1, or "auto"'},
        ),
        (
            {"policy_training": training | {"margin": {"reward_model": reward, "temperature": -1}}},
            {".margin.temperature": 'must be a number > 0, or "fit", got -1'},
        ),
        (
            {
                "calibration": {
                    "eval_dataset": ref(ids.prompts),
                    "dataset": ref(pairs),
                    "method": {"name": "dpo"},
                }
            },
            {
                ".method.name": "dpo reads no margins",
                ".eval_dataset.dataset_id": "is a prompt dataset",
                ".dataset": "has a margin; give reward_model",
            },
        ),
        (
            {"calibration": {"eval_dataset": ref(pairs), "reward_model": policy}},
            {".reward_model.model_id": "is a causal_lm model; give a reward model"},
        ),
        (
            {
                "calibration": {
                    "eval_dataset": ref(pairs),
                    "reward_model": reward,
                    "method": {"params": {"tau": 0}},
                }
            },
            {".method.params.tau": "must be a number > 0"},
        ),
        (
            {
                "dataset_check": {
                    "dataset": ref(NO_DATASET),
                    "eval_dataset": ref(NO_DATASET),
                    "model": {"model_id": NO_MODEL},
                }
            },
            {
                ".model.model_id": "there is no model",
                ".dataset.dataset_id": "there is no dataset",
                ".eval_dataset.dataset_id": "there is no dataset",
            },
        ),
        (
            {"dataset_check": {"dataset": ref(pairs), "model": reward, "overlong": "cut"}},
            {".overlong": "'truncate_prompt'"},
        ),
        (
            {
                "evaluation": {
                    "model": reward,
                    "prompt_dataset": ref(NO_DATASET),
                    "reference": reward,
                    "reward_model": policy,
                    "eval_dataset": ref(ids.prompts),
                    "baseline_job_ids": [supervised, NO_JOB],
                }
            },
            {
                ".model.model_id": "is a reward model",
                ".prompt_dataset.dataset_id": "there is no dataset",
                ".reference.model_id": "is a reward model",
                ".reward_model.model_id": "is a causal_lm model",
                ".eval_dataset.dataset_id": "is a prompt dataset",
                ".baseline_job_ids.0": "give evaluation jobs",
                ".baseline_job_ids.1": "there is no job",
            },
        ),
    ]
    for spec, expected in cases:
        refused = await refusal(gateway.create(spec, "wrong"))
        path = f"spec.{next(iter(spec))}" if spec else ""
        assert refused.code == "INVALID_ARGUMENT", spec
        assert set(refused.violations) == {path + field for field in expected}, spec
        for field, reason in expected.items():
            assert reason in refused.violations[path + field], (field, refused)
    assert gateway.stored() == before


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"display_name": "x" * 201}, "display_name"),
        ({"depends_on": ["job-1"]}, "depends_on.0"),
        ({"depends_on": [NO_JOB]}, "depends_on"),
        ({"depends_on": [job_id_of(str(n)) for n in range(101)]}, "depends_on"),
    ],
)
async def test_a_wrong_request_is_refused_by_field(gateway: Gateway, fields: dict[str, Any], field: str) -> None:
    ids = await make_material(gateway)
    spec = {"supervised_training": {"model": {"model_id": ids.policy}, "dataset": ref(ids.completions)}}

    refused = await refusal(gateway.create(spec, **fields))

    assert (refused.code, list(refused.violations)) == ("INVALID_ARGUMENT", [field])


async def test_a_baseline_that_was_sampled_otherwise_is_refused(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    spec = {"model": {"model_id": ids.policy}, "prompt_dataset": ref(ids.prompts)}
    first = await gateway.create({"evaluation": spec | {"sampling": {"max_new_tokens": 8}}}, "first")
    later = spec | {"baseline_job_ids": [first.job_id]}

    refused = await refusal(gateway.create({"evaluation": later | {"sampling": {"max_new_tokens": 9}}}, "other"))
    await gateway.create({"evaluation": later | {"sampling": {"max_new_tokens": 8, "seed": 3}}}, "same")

    assert list(refused.violations) == ["spec.evaluation.baseline_job_ids.0"]
    assert "was evaluated with sampling.max_new_tokens=8, this evaluation uses 9" in refused.message


async def test_a_baseline_that_another_reward_model_scored_is_refused(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    other = (await gateway.upload_model(REWARD_CONFIG | {"hidden_size": 128})).model.model_id
    spec = {"model": {"model_id": ids.policy}, "prompt_dataset": ref(ids.prompts)}
    first = await gateway.create({"evaluation": spec | {"reward_model": {"model_id": ids.reward}}}, "first")
    later = spec | {"baseline_job_ids": [first.job_id]}

    refused = await refusal(gateway.create({"evaluation": later | {"reward_model": {"model_id": other}}}, "other"))
    await gateway.create({"evaluation": later | {"reward_model": {"model_id": ids.reward}}}, "same")
    await gateway.create({"evaluation": later}, "unscored")

    ((field, said),) = refused.violations.items()
    assert field == "spec.evaluation.baseline_job_ids.0"
    assert f"was scored by {ids.reward}, this evaluation by {other}" in said


async def test_a_metric_that_no_evaluator_has_is_refused_with_those_they_have(gateway: Gateway) -> None:
    ids = await make_material(gateway)

    def spec(*metrics: str) -> dict[str, Any]:
        model, prompts = {"model_id": ids.policy}, ref(ids.prompts)
        return {"evaluation": {"model": model, "prompt_dataset": prompts, "metrics": list(metrics)}}

    reserved = await refusal(gateway.create(spec("reward"), "reserved"))
    await gateway.create(spec("vadr"), "nobody-says")
    await gateway.queue.announce("evaluate", "one", ["vader", "words"])
    await gateway.queue.announce("evaluate", "other", ["toy"])
    unknown = await refusal(gateway.create(spec("words", "vadr", "bleu"), "unknown"))
    apart = await refusal(gateway.create(spec("words", "toy"), "apart"))
    await gateway.create(spec("words", "vader"), "known")
    await gateway.create(spec(), "none")

    assert reserved.violations == {
        "spec.evaluation.metrics": "reward is the score of the reward model: give reward_model instead, got ['reward']"
    }
    assert unknown.violations == {
        "spec.evaluation.metrics.1": "no evaluator has a metric 'vadr'; did you mean vader? they have toy, vader, "
        "words",
        "spec.evaluation.metrics.2": "no evaluator has a metric 'bleu'; they have toy, vader, words",
    }
    assert apart.violations == {
        "spec.evaluation.metrics": "no evaluator has all of these, they have: toy; vader, words (ask in several jobs)"
    }


async def test_a_judge_that_no_evaluator_has_and_one_with_nothing_to_compare_are_refused(gateway: Gateway) -> None:
    ids = await make_material(gateway)

    def spec(prompts: str, **fields: Any) -> dict[str, Any]:
        return {"evaluation": {"model": {"model_id": ids.policy}, "prompt_dataset": ref(prompts), **fields}}

    def judge(name: str) -> dict[str, Any]:
        return {"judge": {"name": name, "against_chosen": True}}

    await gateway.queue.announce("evaluate", "one", ["words", "judge:gpt"])
    await gateway.queue.announce("evaluate", "other", ["judge:llama", "toy"])
    alone = await refusal(gateway.create(spec(ids.pairs, judge={"name": "gpt"}), "alone"))
    address = await refusal(gateway.create(spec(ids.pairs, **judge("http://10.0.0.1/v1")), "address"))
    unknown = await refusal(gateway.create(spec(ids.pairs, metrics=["gpt"], **judge("lama")), "unknown"))
    apart = await refusal(gateway.create(spec(ids.pairs, metrics=["toy"], **judge("gpt")), "apart"))
    no_pairs = await refusal(gateway.create(spec(ids.prompts, **judge("gpt")), "no-pairs"))
    await gateway.create(spec(ids.pairs, metrics=["words"], **judge("gpt")), "known")

    assert "judge has nothing to compare with" in alone.violations["spec.evaluation"]
    assert (
        "must be the name of a judge that an evaluator's operator has set up"
        in address.violations["spec.evaluation.judge.name"]
    )
    assert unknown.violations == {
        "spec.evaluation.metrics.0": "no evaluator has a metric 'gpt'; they have toy, words",
        "spec.evaluation.judge.name": "no evaluator has a judge 'lama'; did you mean llama? they have gpt, llama",
    }
    assert apart.violations == {
        "spec.evaluation.metrics": "no evaluator has all of these, they have: judge:gpt, words; judge:llama, toy (ask "
        "in several jobs)"
    }
    assert "has no chosen responses" in no_pairs.violations["spec.evaluation.judge.against_chosen"]


async def test_the_best_step_is_told_by_a_figure_that_the_training_measures(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    model, pairs = {"model": {"model_id": ids.policy}}, {"dataset": ref(ids.pairs), "eval_dataset": ref(ids.pairs)}
    completions = {"dataset": ref(ids.completions), "eval_dataset": ref(ids.completions)}

    def spec(kind: str, metric: str, every: int | None = 2) -> dict[str, Any]:
        rows = completions if kind == "supervised_training" else pairs
        method = {"method": {"name": "dpo"}} if kind == "policy_training" else {}
        return {kind: model | rows | method | {"training": {"best_metric": metric, "eval_every_steps": every}}}

    said = {}
    for kind, metric in (("reward", "acuracy"), ("policy", "accuracy"), ("supervised", "eval_loss")):
        refused = await refusal(gateway.create(spec(f"{kind}_training", metric), "wrong"))
        ((field, said[kind]),) = refused.violations.items()
        assert field == f"spec.{kind}_training.training.best_metric"
    for number, (kind, metric) in enumerate(
        [("reward", "accuracy"), ("policy", "rewards/accuracy"), ("supervised", "loss")]
    ):
        await gateway.create(spec(f"{kind}_training", metric), f"right-{number}")
    await gateway.create(spec("reward_training", "unused", every=None), "no-step-is-looked-at")

    assert said["reward"].startswith(
        "no figure 'acuracy' on held-out rows; did you mean accuracy? there are accuracy, "
    )
    assert said["policy"].startswith(
        "no figure 'accuracy' on held-out rows; there are loss, rewards/implicit_margin, rewards/accuracy, "
    )
    assert said["supervised"] == "no figure 'eval_loss' on held-out rows; there are loss"
