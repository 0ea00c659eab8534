"""Both demos in their small size: everything but the figures' meaning."""

import json

import pytest

from madpo.errors import UnavailableError
from madpo_client.embedded import EmbeddedStack
from madpo_examples.movie_reviews import demo as movie_reviews
from madpo_examples.toy_reviews import demo as toy_reviews

ROW = {"name", "reward", "reward_ci", "kl", "grammatical", "win_rate"}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack, stack.client() as client:
        yield client


@pytest.mark.slow
def test_toy_reviews_goes_from_a_corpus_to_a_compared_policy(client, tmp_path):
    toy_reviews.main(client=client, out=tmp_path, scale="smoke")

    report = check_report(tmp_path, names=["sft", "dpo", "madpo"])
    assert all(set(row) >= ROW for row in report["rows"])


@pytest.mark.slow
@pytest.mark.real
def test_movie_reviews_trains_a_real_model_on_human_ratings(client, tmp_path):
    for package in ("accelerate", "gguf", "vaderSentiment"):
        pytest.importorskip(package)
    try:
        movie_reviews.main(client=client, out=tmp_path, scale="smoke")
    except UnavailableError as error:
        pytest.skip(str(error))

    check_report(tmp_path, names=["base", "dpo", "madpo"])


def check_report(directory, *, names):
    report = json.loads((directory / "demo.json").read_text())
    assert [row["name"] for row in report["rows"]] == names
    assert report["margins"]["requested"] == report["margins"]["scored_live"] > 0
    assert report["margins"]["wait_share"] >= 0
    assert 0 <= report["reward_model"]["accuracy_noiseless"] <= 1
    assert {path.name for path in directory.glob("*.png")} == {"margins.png", "training.png", "frontier.png"}
    return report
