"""Iterated training in the methods' benchmark, in a small size: which pairs it trains on, what it is compared with."""

from random import Random

import pytest
import torch

from bench.methods import loop, policy, rloo, toy
from bench.methods.arms import ARMS
from bench.methods.plan import PARTS, LoopJob, ToyJob, jobs
from bench.methods.run import execute
from madpo.pairing.label import labelled_pairs
from madpo.types import PromptOnly


def loop_job(arm: str, **changes) -> LoopJob:
    fields = {"tier": "high", "form": "bounded", "seed": 0, "reward_model": "words", "beta": 0.1}
    return LoopJob(arm=arm, learning_rate=1e-3, rounds=2, **(fields | changes))


@pytest.fixture
def setting(tmp_path):
    return loop.Setting(0, "high", "bounded", "words", tmp_path, toy.TINY)


def test_the_baseline_is_the_same_training_as_in_the_other_tables(tmp_path):
    job = ToyJob("high", "bounded", 0, "words", "rm_soft", 0.1, 1e-3, 2)
    assert execute(loop_job("rm_soft"), tmp_path, toy.TINY) == execute(job, tmp_path, toy.TINY)


@pytest.mark.parametrize("arm", [*loop.LOOPS, "rloo"])
def test_every_arm_trains_measures_and_repeats_itself(tmp_path, arm):
    first = execute(loop_job(arm), tmp_path, toy.TINY)
    assert {"reward", "kl", "grammatical", "implicit_accuracy"} <= set(first)
    assert first["kl"] > 0
    loop._drawn_supervised.cache_clear()
    assert execute(loop_job(arm), tmp_path, toy.TINY) == first


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
