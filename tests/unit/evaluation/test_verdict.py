"""What may be said of a comparison, and its page."""

from html.parser import HTMLParser
from typing import Any

import pytest

from madpo.evaluation.report import Accuracy, Comparison, Estimate
from madpo.evaluation.verdict import Cost, Example, Measured, PolicyVerdict, Verdict, difference, doubts
from madpo.pages.verdict_page import render_verdict

HOSTILE = '<script>alert(1)</script>" onload="x'


def estimate(mean: float, half: float = 0.1) -> Estimate:
    return Estimate(mean=mean, std=1.0, ci=(mean - half, mean + half))


def comparison(value: float, low: float, high: float) -> Comparison:
    return Comparison(win_rate=0.6, win_rate_ci=(0.5, 0.7), difference=value, difference_ci=(low, high))


def measured(
    name: str = "madpo", *, reward: float = 1.0, kl: float = 2.0, finished: float = 0.9, **fields: Any
) -> Measured:
    return Measured(
        name=name,
        evaluation_job_id="job-1",
        reward=estimate(reward),
        metrics={},
        kl=estimate(kl),
        response_tokens=estimate(20),
        finished_ratio=finished,
        **fields,
    )


def accuracy(share: float) -> Accuracy:
    return Accuracy(accuracy=share, ci=(share - 0.05, share + 0.05), pairs=100)


def policy(name: str, reward: float, **fields: Any) -> PolicyVerdict:
    last = measured(name, reward=reward, **fields)
    return PolicyVerdict(
        measured=last, method=name, params={"beta": 0.1}, seed=0, model_id="model-1", training_job_ids=("job-2",)
    )


def verdict(*policies: PolicyVerdict, **fields: Any) -> Verdict:
    cost = Cost(job_seconds=3725, training_seconds=61, sampled_tokens=12345)
    start = measured("start", reward=0.5, kl=0.0)
    return Verdict(name="toy", reward_model="my-reward", start=start, policies=policies, cost=cost, **fields)


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (comparison(0.3, 0.1, 0.5), "+0.3 (95 % CI +0.1 to +0.5) ahead of"),
        (comparison(-0.3, -0.5, -0.1), "-0.3 (95 % CI -0.5 to -0.1) behind"),
        (comparison(0.3, -0.1, 0.7), "+0.3 (95 % CI -0.1 to +0.7), not distinguishable from"),
        (Comparison(win_rate=1.0, win_rate_ci=None, difference=0.3, difference_ci=None), "one prompt tells nothing"),
    ],
)
def test_what_an_interval_allows_to_say(compared: Comparison, said: str) -> None:
    assert said in difference(compared)


def test_the_best_is_named_first_with_what_it_is_compared_to() -> None:
    dpo = policy("dpo", 1.0, against_start=comparison(0.5, 0.3, 0.7))
    madpo = policy(
        "madpo", 1.2, against_start=comparison(0.7, 0.5, 0.9), against_first=comparison(0.2, -0.1, 0.5), kl=3.0
    )

    assert verdict(dpo, madpo).sentences == [
        "madpo: reward 1.2, +0.7 (95 % CI +0.5 to +0.9) ahead of the start, +0.2 (95 % CI -0.1 to +0.5), not "
        "distinguishable from dpo, at a KL of 3 nats.",
        "dpo: reward 1, +0.5 (95 % CI +0.3 to +0.7) ahead of the start, at a KL of 2 nats.",
    ]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (measured(reward=2.0), []),
        (measured(reward=2.0, finished=0.7), ["finished responses fell from 90% to 70%"]),
        (measured(reward=2.0, accuracy=accuracy(0.6)), ["fell from 70.0% to 60.0%"]),
        (measured(reward=2.0, kl=30.0), ["30 nats from the start"]),
        (measured(reward=0.9, finished=0.6, accuracy=accuracy(0.5), kl=30.0), []),
        (measured(reward=0.9, finished=0.2), ["80% of its responses are cut off"]),
    ],
)
def test_a_rising_reward_is_doubted_for_reasons(after: Measured, said: list[str]) -> None:
    found = doubts("madpo", [measured(reward=1.0, accuracy=accuracy(0.7)), after])

    assert len(found) == len(said)
    assert all(part in warning for part, warning in zip(said, found, strict=True))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_page_has_every_part_and_shows_hostile_text_as_text() -> None:
    rounds = (measured("madpo", reward=0.8), measured("madpo", reward=1.2))
    madpo = policy("madpo", 1.2, against_start=comparison(0.7, 0.5, 0.9)).model_copy(update={"rounds": rounds})
    found = verdict(
        policy(HOSTILE, 1.0),
        madpo,
        warnings=(HOSTILE,),
        examples=(Example(prompt=HOSTILE, responses={HOSTILE: HOSTILE}, rewards={HOSTILE: 1.0}),),
        jobs={"a": "job-1"},
    )

    text = render_verdict(found)

    tags = Tags()
    tags.feed(text)
    parts = {"verdict", "warnings", "policies", "frontier", "rounds", "examples", "cost", "models"}
    assert parts <= set(tags.ids)
    assert not {"script", "link", "img", "iframe"} & tags.tags
    assert "1 h 2 min" in text
    assert "12,345" in text
    assert Verdict.model_validate_json(found.model_dump_json()) == found
