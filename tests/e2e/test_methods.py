"""Methods of every sort train on the embedded stack: filtered pairs, added terms, running state, no reference."""

import math

import pytest

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
def jobs(client: Client, base, pairs):
    """All at once: the trainer takes one after the other."""
    return {
        name: client.jobs.train_policy(
            model=base,
            dataset=pairs,
            method=name,
            params=params,
            margin={"source": "dataset"},
            training={"max_steps": 3, "global_batch_size": 8, "micro_batch_size": 3, "max_tokens": 64},
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


def test_a_method_whose_input_no_job_can_have_is_refused_at_the_door(client: Client, base, pairs):
    with pytest.raises(Exception, match=r"ld_dpo .* needs token_logps, which training cannot provide yet"):
        client.jobs.train_policy(model=base, dataset=pairs, method="ld_dpo")
