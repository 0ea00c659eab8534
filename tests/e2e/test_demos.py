"""Both demos in their small size: everything but the figures' meaning."""

import pytest

from madpo.errors import UnavailableError
from madpo.evaluation.verdict import Verdict
from madpo_client.embedded import EmbeddedStack
from madpo_examples.movie_reviews import demo as movie_reviews
from madpo_examples.toy_reviews import demo as toy_reviews


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack, stack.client() as client:
        yield client


@pytest.mark.slow
def test_toy_reviews_goes_from_a_corpus_to_a_compared_policy(client, tmp_path):
    toy_reviews.main(client=client, out=tmp_path, scale="smoke")

    verdict = check_verdict(client, tmp_path)
    assert set(verdict.start.metrics) == {"toy_reward", "toy_grammatical"}
    # Four steps, each with a checkpoint; the last one is what is left.
    assert [[each.step for each in policy.checkpoints] for policy in verdict.policies] == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.slow
@pytest.mark.real
def test_movie_reviews_trains_a_real_model_on_human_ratings(client, tmp_path):
    for package in ("accelerate", "gguf", "vaderSentiment"):
        pytest.importorskip(package)
    try:
        movie_reviews.main(client=client, out=tmp_path, scale="smoke")
    except UnavailableError as error:
        pytest.skip(str(error))

    check_verdict(client, tmp_path)


def check_verdict(client, directory):
    verdict = Verdict.model_validate_json((directory / "verdict.json").read_bytes())
    assert [policy.name for policy in verdict.policies] == ["dpo", "madpo"]
    margins = client.jobs.get(verdict.policies[1].training_job_ids[0]).job.result.summary["margins"]
    assert margins["requested"] == margins["scored_live"] > 0
    assert [pairs.policy for pairs in verdict.pairs] == ["madpo"]
    assert 'id="frontier"' in (directory / "verdict.html").read_text()
    return verdict
