"""Every method trains on the embedded stack, and what cannot train is refused at the door."""

import math

import pytest
import torch
from safetensors.torch import load_file

from madpo.errors import InvalidArgumentError
from madpo.losses.registry import METHODS, parse_params
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model

pytestmark = pytest.mark.methods

PARAMS = {"beta_dpo": {"filter_ratio": 0.2}, "rpo": {"sft_weight": 0.5}, "tr_dpo": {"every": 2}}
"""Where defaults would leave out, in three steps, what is particular to a method."""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack, stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def base(client: Client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    make_base_model(directory)
    return client.models.upload(directory, name="tiny")


@pytest.fixture(scope="module")
def pairs(client: Client):
    words = ["superb", "good", "weak", "awful", "charming", "dull"]
    rows = [
        {
            "prompt": "a 1980s drama . the plot",
            "chosen": f"is {first} and {second} .",
            "rejected": f"is {second} and {first} .",
            "margin": 0.5 * (index - 12),
            "gold": "is a masterpiece .",
            "chosen_uncertainty": index % 3 / 2,
            "rejected_uncertainty": index % 5 / 4,
            "semantic_distance": index % 4 / 2,
        }
        for index, (first, second) in enumerate(
            (first, second) for first in words for second in words if first < second
        )
    ]
    return client.datasets.upload(rows, name="pairs")


@pytest.fixture(scope="module")
def lists(client: Client):
    texts = ["is superb .", "is good .", "is dull .", "is awful ."]
    rows = [
        {
            "prompt": f"a 19{decade}0s drama . the plot",
            "responses": texts[: 3 + decade % 2],
            "scores": [2, 1, 0, -1][: 3 + decade % 2],
        }
        for decade in range(5, 10)
    ]
    return client.datasets.upload(rows, name="lists")


@pytest.fixture(scope="module")
def jobs(client: Client, base, pairs, lists):
    """All at once: the trainer takes one after the other."""

    def train(name: str):
        params = PARAMS.get(name, {})
        requirements = METHODS[name].requirements(parse_params(name, params))
        return client.jobs.train_policy(
            model=base,
            dataset=lists if requirements.list else pairs,
            method=name,
            params=params,
            margin={"source": "dataset"} if requirements.margin else None,
            training={"max_steps": 3, "global_batch_size": 8, "micro_batch_tokens": 40, "max_tokens": 64},
        )

    return {name: train(name) for name in METHODS}


@pytest.fixture(scope="module")
def base_weights(client: Client, base, tmp_path_factory):
    return weights_of(client, base, tmp_path_factory.mktemp("weights") / "base")


def weights_of(client: Client, model, directory):
    return load_file(client.models.download(model, directory) / "model.safetensors")


@pytest.mark.parametrize("name", METHODS)
def test_it_trains(client: Client, base_weights, jobs, name: str, tmp_path):
    result = jobs[name].wait(timeout_s=600).result

    assert result.summary["method"]["name"] == name
    assert math.isfinite(result.summary["final"]["loss"])
    trained = weights_of(client, jobs[name], tmp_path / "trained")
    assert any(not torch.equal(trained[key], weight) for key, weight in base_weights.items())
    assert all(bool(weight.isfinite().all()) for weight in trained.values())
    assert jobs[name].ledger().num_rows == 3 * 8


def test_a_ledger_has_the_pairs_that_beta_dpo_kept(jobs):
    job = jobs["beta_dpo"]
    assert 0 < job.wait(timeout_s=600).result.summary["final"]["pairs/kept_ratio"] < 1

    ledger = job.ledger()

    assert ledger["kept"].to_pylist() == [ratio == 1 for ratio in ledger["beta_dpo_kept_ratio"].to_pylist()]
    assert {True, False} == set(ledger["kept"].to_pylist())


def test_a_method_whose_input_is_missing_is_refused_at_the_door(client: Client, base, pairs, lists):
    def refused(method, dataset, **fields):
        with pytest.raises(InvalidArgumentError) as caught:
            client.jobs.train_policy(model=base, dataset=dataset, method=method, **fields)
        return {violation.field: violation.description for violation in caught.value.violations}

    (reason,) = refused("irpo", pairs).values()
    assert "needs several scored responses per prompt" in reason
    assert "upload a dataset of lists, with columns responses and scores" in reason
    plain = client.datasets.upload(
        [{"prompt": "the plot", "chosen": "is good .", "rejected": "is dull ."}], name="plain"
    )
    assert "add a column gold" in refused("tpo", plain)["dataset"]
    margins = refused("madpo", lists, margin={"source": "dataset"})
    assert "has a margin; give reward_model" in margins["margin.source"]
