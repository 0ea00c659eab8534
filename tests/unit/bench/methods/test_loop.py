"""Iterated training in the methods' benchmark, in a small size: which pairs it trains on, what it is compared with."""

from random import Random

import pytest
import torch

from bench.methods import loop, loop_tables, policy, rloo, toy
from bench.methods.arms import ARMS
from bench.methods.loop_tables import Policy, best_grammatical, best_grammatical_between
from bench.methods.plan import PARTS, LoopJob, ToyJob, jobs
from bench.methods.results import identity
from bench.methods.run import execute
from madpo.pairing.label import labelled_pairs
from madpo.types import PromptOnly


def loop_job(arm: str, **changes) -> LoopJob:
    fields = {"tier": "high", "form": "bounded", "seed": 0, "reward_model": "words", "beta": 0.1}
    return LoopJob(arm=arm, learning_rate=1e-3, rounds=2, **(fields | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of the one world of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def setting(cache):
    return loop.Setting(0, "high", "bounded", "words", cache, toy.TINY)


def test_the_baseline_is_the_same_training_as_in_the_other_tables(cache):
    job = ToyJob("high", "bounded", 0, "words", "rm_soft", 0.1, 1e-3, 2)
    assert execute(loop_job("rm_soft"), cache, toy.TINY) == execute(job, cache, toy.TINY)


@pytest.mark.parametrize("arm", [*loop.LOOPS, "rloo"])
def test_every_arm_trains_and_measures(cache, arm):
    measured = execute(loop_job(arm), cache, toy.TINY)
    assert {"reward", "kl", "grammatical", "implicit_accuracy"} <= set(measured)
    assert measured["kl"] > 0


@pytest.mark.parametrize("arm", ["relabel_unsure", "rloo"])
def test_training_repeats_itself(cache, arm):
    first = execute(loop_job(arm), cache, toy.TINY)
    loop._drawn_supervised.cache_clear()
    assert execute(loop_job(arm), cache, toy.TINY) == first


def test_every_arm_of_the_plan_is_known():
    arms = {job.arm for part in PARTS for job in jobs(part) if isinstance(job, LoopJob)}
    assert arms == {"rm_soft", "rloo", *loop.LOOPS}


def test_pairs_are_ordered_by_the_reward_model_and_keep_their_prompts(setting):
    made, prompts = setting.world, loop._prompts(setting.pairs()[2])
    drawn = loop._draw(made, made.reference, prompts, stream=0, samples=2)
    score = setting.scorer()
    pairs, margins = loop.paired_responses(made, prompts, drawn, score, rule="random_pair", stream=0)
    assert 0 < len(pairs.rows) <= len(prompts)
    assert bool((margins > 0).all())
    rewards = score(pairs.rows.flatten(0, 1), pairs.lengths.flatten()).view(-1, 2)
    torch.testing.assert_close((rewards[:, 0] - rewards[:, 1]).float(), margins)
    asked = set(map(tuple, prompts.tolist()))
    assert {tuple(row) for row in pairs.rows[:, :, : toy.PROMPT_TOKENS].flatten(0, 1).tolist()} <= asked
    torch.testing.assert_close(
        pairs.reference_logps.flatten(),
        toy.all_logps(made.reference, pairs.rows.flatten(0, 1), pairs.lengths.flatten(), made.shape),
    )


def test_unfinished_and_identical_responses_make_no_pair(setting):
    made, prompts = setting.world, loop._prompts(setting.pairs()[2])
    one, other = loop._draw(made, made.reference, prompts, stream=0, samples=2)
    for drawn in ([one, one], [toy.Samples(one.rows, one.lengths, torch.zeros_like(one.finished)), other]):
        pairs, margins = loop.paired_responses(made, prompts, drawn, setting.scorer(), rule="random_pair", stream=0)
        assert len(pairs.rows) == len(margins) == 0


def test_the_method_of_all_arms_is_dpo_on_the_products_soft_labels():
    better, worse = labelled_pairs(
        PromptOnly("p"), ["a", "b"], [1.5, 0.25], (0, 1), labels="soft", temperature=1.0, chance=Random(0)
    )
    logps, reference = torch.tensor([[-3.0, -5.0]]), torch.tensor([[-4.0, -4.5]])

    def loss(arm, order, margin):
        method, config = ARMS[arm].at(0.3)
        chance = torch.Generator()
        return policy.pair_loss(
            method, config, logps[:, order], reference[:, order], torch.ones(1, 2), margin, {}, chance
        )

    soft = loss("rm_soft", [0, 1], torch.tensor([1.25]))
    weighted = better.weight * loss("dpo", [0, 1], None) + worse.weight * loss("dpo", [1, 0], None)
    torch.testing.assert_close(soft, weighted)


def test_a_mixed_round_is_half_labelled_and_takes_all_labelled_pairs_in_two(setting):
    labelled = setting.pairs()[2]
    taken = []
    for round_ in (0, 1):
        pairs, margins = loop._round(
            setting, loop.LOOPS["mixed"], setting.world.reference, labelled, setting.scorer(), round_
        )
        assert len(pairs.rows) == len(margins) > len(labelled.rows) // 2
        taken.append(pairs.rows[: len(labelled.rows) // 2])
    assert torch.equal(torch.cat(taken), labelled.rows)


def test_own_pairs_are_labelled_by_the_true_reward_with_noise(setting):
    labelled = setting.pairs()[2]
    bought = loop._label_own(setting, setting.world.reference, labelled[16:], setting.scorer(), rule="least_sure")
    assert 0 < len(bought.rows) <= 16
    rewards = toy.reward(
        torch.tensor(
            [toy.valence_sum(text) for text in toy.texts(bought.rows.flatten(0, 1), bought.lengths.flatten())]
        ),
        "bounded",
    ).view(-1, 2)
    torch.testing.assert_close(bought.true_margin.float(), rewards[:, 0] - rewards[:, 1])
    assert torch.equal(
        bought.true_margin,
        loop._label_own(
            setting, setting.world.reference, labelled[16:], setting.scorer(), rule="least_sure"
        ).true_margin,
    )


def test_a_response_leads_by_what_it_is_worth_over_the_others():
    advantages = rloo.leave_one_out(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    assert advantages.tolist() == [[2.0, -2.0], [0.0, 0.0]]
    assert rloo.leave_one_out(torch.tensor([[4.0, 1.0, 1.0]])).tolist() == [[3.0, -1.5, -1.5]]


def test_the_best_reward_counts_only_where_responses_are_grammatical():
    curve = {0.1: Policy(9.0, 3.0, 0.8), 0.2: Policy(4.0, 2.0, 0.92), 0.4: Policy(1.0, 1.0, 0.95)}
    assert best_grammatical(curve) == 2.0
    # 0.9 is a sixth of the way from 0.92 to 0.8.
    assert best_grammatical_between(curve) == pytest.approx(2 + 1 / 6)
    assert best_grammatical({0.1: curve[0.1]}) is None
    assert best_grammatical_between({0.1: curve[0.1]}) is None


def made_up(lead: float, grammatical: float, worlds: int) -> list[dict]:
    """Records of a high tier in which `iterated` leads at every KL, and of an arm that no world has whole."""
    records = []
    for job in jobs("loop-high"):
        if isinstance(job, LoopJob) and job.seed < 201 + worlds:
            ahead = job.arm == "iterated"
            noise = Random(f"{job.arm} {job.seed} {job.beta}").gauss(0, 0.01)
            reward = 1 / job.beta**0.5 + lead * ahead + noise
            values = {"kl": 1 / job.beta, "reward": reward, "grammatical": grammatical if ahead else 0.95}
            records.append({"job": identity(job), "values": values})
    cut = LoopJob("high", "bounded", 201, "words", "fresh", 0.25, 5e-4, 4)
    return [*records, {"job": identity(cut), "values": {"kl": 4.0, "reward": 9.0, "grammatical": 1.0}}]


@pytest.mark.parametrize(
    ("lead", "grammatical", "expected"),
    [(0.1, 0.95, "(a) and (b)"), (0.1, 0.85, "(a)"), (0.0, 0.95, "no"), (-0.1, 0.95, "no")],
)
def test_the_verdict_names_the_measures_by_which_an_arm_is_ahead(lead, grammatical, expected):
    header, _, *rows = loop_tables.verdict(made_up(lead, grammatical, worlds=16)).splitlines()
    assert header.startswith("| setting | arm | worlds |")
    assert len(rows) == 1  # `fresh` has not all its betas
    cells = rows[0].strip("| ").split(" | ")
    assert cells[:3] == ["high", "iterated", "16"]
    assert cells[-1] == expected
    assert cells[4].endswith("16 left out") == (grammatical < 0.9)


def test_nothing_is_decided_before_all_worlds_are_there():
    row = loop_tables.verdict(made_up(0.1, 0.95, worlds=15)).splitlines()[2]
    assert row.endswith("| open |")
