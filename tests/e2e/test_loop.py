"""A round of the loop on the embedded stack: a policy's own pairs, scored live, and trained on."""

import pytest

from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_training import preference_rows, training


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack, stack.client() as client:
        yield client


def test_a_policy_is_trained_on_pairs_of_its_own_over_two_rounds(client, tmp_path):
    make_base_model(tmp_path / "base")
    policy = client.models.upload(tmp_path / "base", name="tiny")
    pairs = client.datasets.upload(preference_rows(48), name="pairs")
    reward = client.jobs.train_reward(model=policy, dataset=pairs, training=training(max_steps=6))

    jobs = []
    for number in (1, 2):
        sampled = client.jobs.sample(
            model=policy,
            prompts=pairs,
            reward_model=reward,
            sampling={"samples_per_prompt": 3, "max_new_tokens": 8, "seed": number},
            keep_unfinished=True,
            max_prompts=8,
            mixed_dataset=pairs,
            mixed_pairs=4,
        )
        policy = client.jobs.train_policy(
            model=policy,
            dataset=sampled,
            method="madpo",
            margin={"source": "dataset"},
            training=training(max_steps=3),
        )
        jobs += [sampled, policy]
    # All are asked for at once; each waits for what it needs.
    done = [job.wait() for job in jobs]

    datasets = [client.datasets.get(job.result.dataset_id) for job in done[::2]]
    assert [dataset.rows for dataset in datasets] == [job.result.summary["pairs"] + 4 for job in done[::2]]
    assert {"reward_margin", "chosen_reward", "rejected_reward"} <= set(datasets[0].columns)
    assert datasets[0].dataset_id != datasets[1].dataset_id
    assert done[1].result.model_id != done[3].result.model_id
    assert done[3].result.summary["rows"]["training"]["rows"] == datasets[1].rows

    scored = client.jobs.score(dataset=pairs, reward_model=reward).wait()
    left = client.datasets.get(scored.result.dataset_id)
    assert (left.rows, "reward_margin" in left.columns) == (pairs.rows, True)
