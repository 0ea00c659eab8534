"""Methods of every sort of input train on the embedded stack, and what cannot train is refused at the door.

`tests/integration/test_every_method.py` trains all of them, by the same code without the services around it.
"""

import math

import pytest

from madpo.errors import InvalidArgumentError
from madpo_client import Client
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model

METHODS = {
    "madpo_posterior": {"tau": 2.0},
    "rm_soft": {},
    "beta_dpo": {},
    "alpha_dpo": {},
    "rpo": {"sft_weight": 0.5},
    "simpo": {},
    "wpo": {},
    "kto": {},
    "tr_dpo": {"every": 2},
    "adpo_list": {},
}


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
    return {
        name: client.jobs.train_policy(
            model=base,
            dataset=lists if name == "adpo_list" else pairs,
            method=name,
            params=params,
            margin=None if name == "adpo_list" else {"source": "dataset"},
            training={"max_steps": 3, "global_batch_size": 8, "micro_batch_tokens": 40, "max_tokens": 64},
        )
        for name, params in METHODS.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains(client: Client, base, jobs, name: str):
    result = jobs[name].wait(timeout_s=300).result

    assert result.model_id != base.model_id
    assert result.summary["method"]["name"] == name
    assert math.isfinite(result.summary["final"]["loss"])
    ledger = jobs[name].ledger()
    assert ledger.num_rows == 3 * 8
    if name == "beta_dpo":
        assert 0 < result.summary["final"]["pairs/kept_ratio"] < 1
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
    assert "add a column gold" in refused("tpo", pairs)["spec.policy_training.dataset_id"]
    margins = refused("madpo", lists, margin={"source": "dataset"})
    assert "has a margin; give reward_model" in margins["spec.policy_training.margin.source"]
