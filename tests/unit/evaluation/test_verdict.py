"""What may be said of a comparison, and its page."""

from html.parser import HTMLParser
from typing import Any

import pytest

from madpo.evaluation.report import Accuracy, Comparison, Estimate
from madpo.evaluation.verdict import (
    Cost,
    DataFinding,
    Example,
    Measured,
    PairShown,
    PairsThatMattered,
    PolicyVerdict,
    Verdict,
    difference,
    doubts,
    figure,
)
from madpo.pages.verdict_page import render_verdict

HOSTILE = '<script>alert(1)</script>" onload="x'


SHOWN = PairShown(
    row=1, reward_margin=-2.0, weight=1.5, implicit_margin=0.1, prompt=HOSTILE, chosen=HOSTILE, rejected=HOSTILE
)


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
        "distinguishable from dpo, at a KL of 3 nats, further from the start than dpo: part of the difference may be "
        "distance.",
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


def test_a_reward_that_rises_while_the_metric_falls_is_doubted() -> None:
    before = measured(reward=1.0).model_copy(update={"metrics": {"truth": estimate(2.0)}})
    after = measured(reward=2.0).model_copy(update={"metrics": {"truth": estimate(1.0)}})

    (found,) = doubts("madpo", [before, after], "truth")
    assert "truth fell from 2 to 1: the reward model is over-optimised" in found
    assert doubts("madpo", [before, after]) == []


def seeded(name: str, reward: float, seed: int, **params: float) -> PolicyVerdict:
    return policy(name, reward).model_copy(update={"method": "madpo", "params": params, "seed": seed})


def test_seeds_of_one_method_and_beta_are_summed_up() -> None:
    found = verdict(
        seeded("b", 2.0, 0, beta=0.2),
        seeded("a0", 1.0, 0, beta=0.1, tau=2.0),
        seeded("a1", 3.0, 1, tau=2.0, beta=0.1),
    )

    (summary,) = found.seeds
    assert (summary.name, summary.seeds, summary.mean) == ("madpo, beta 0.1", (0, 1), 2.0)
    assert summary.spread == pytest.approx(2**0.5)
    assert (summary.lowest, summary.highest, summary.kl) == (1.0, 3.0, 2.0)
    assert 'id="seeds"' in render_verdict(found)
    assert 'id="seeds"' not in render_verdict(verdict(seeded("b", 2.0, 0, beta=0.2)))


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (0.000065, 0.0775, "0"),
        (-0.0002, 0.1, "0"),
        (0.757, 0.075, "0.757"),
        (3e-5, 1e-5, "3e-05"),
        (1234.5, 0.0, "1.23e+03"),
    ],
)
def test_a_figure_says_no_more_than_its_interval_knows(mean: float, half: float, shown: str) -> None:
    assert figure(estimate(mean, half)) == shown


def test_what_cannot_be_told_apart_is_said() -> None:
    dpo = policy("dpo", 1.0, against_start=comparison(0.1, -0.3, 0.5))
    madpo = policy(
        "madpo", 1.2, against_start=comparison(0.7, 0.5, 0.9), against_first=comparison(0.2, -0.1, 0.5), kl=2.0
    )
    found = verdict(dpo, madpo)

    assert found.undecided == ["dpo from the start", "madpo from dpo"]
    assert "dpo from the start; madpo from dpo cannot be told apart here" in render_verdict(found)


def test_a_path_goes_over_checkpoints_and_rounds_in_the_order_of_training() -> None:
    def at(number: int, step: int | None, job: str) -> Measured:
        return measured(kl=number).model_copy(update={"round": number, "step": step, "evaluation_job_id": job})

    rounds = (at(1, None, "r1"), at(2, None, "r2"))
    iterated = policy("iterated", 1.0).model_copy(
        update={
            "measured": rounds[1],
            "rounds": rounds,
            "checkpoints": (at(2, 8, "c2"), at(1, 9, "b1"), at(1, 8, "a1")),
        }
    )

    assert [each.evaluation_job_id for each in iterated.path] == ["a1", "b1", "r1", "c2", "r2"]


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
        data=(DataFinding(dataset=HOSTILE, severity="warning", title=HOSTILE, count=2, rows=(1,), advice=HOSTILE),),
        pairs=(
            PairsThatMattered(
                policy=HOSTILE,
                pairs=2,
                contradicted_ratio=0.5,
                contradicted_weight_ratio=0.4,
                heaviest=(SHOWN,),
                contradicted=(SHOWN,),
            ),
        ),
        examples=(Example(prompt=HOSTILE, responses={HOSTILE: HOSTILE}, rewards={HOSTILE: 1.0}),),
        jobs={"a": "job-1"},
    )

    text = render_verdict(found)

    tags = Tags()
    tags.feed(text)
    parts = {"verdict", "warnings", "policies", "frontier", "rounds", "examples", "pairs", "data", "cost", "models"}
    assert parts <= set(tags.ids)
    assert not {"script", "link", "img", "iframe"} & tags.tags
    assert "1 h 2 min" in text
    assert "12,345" in text
    assert Verdict.model_validate_json(found.model_dump_json()) == found
