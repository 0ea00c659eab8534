"""The methods' benchmark in a small size: that it computes what it says, pairs what it compares, and repeats itself."""

import json
import math
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.methods import bandit, llama, sampling, toy
from bench.methods.analysis import Estimate, paired, reward_at, rewards_at
from bench.methods.arms import ARMS, Arm
from bench.methods.plan import PARTS, RewardModelJob, ToyJob, jobs
from bench.methods.report import DOCUMENT, fill
from bench.methods.results import done, identity, key, read, to_line
from bench.methods.run import RESULTS, execute
from bench.methods.tables import tables
from madpo_examples.toy_reviews.language import true_reward, write_review

MODEL = LlamaConfig(
    vocab_size=29,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LlamaForCausalLM(MODEL).eval()
    for parameter in made.parameters():  # gains of 1 would hide where they belong
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


def toy_job(arm: str, **changes) -> ToyJob:
    fields = {"tier": "high", "form": "bounded", "seed": 0, "reward_model": "words", "beta": 0.1}
    return ToyJob(arm=arm, learning_rate=1e-3, epochs=1, **(fields | changes))


def test_fast_llama_is_the_llama_of_transformers_with_its_gradients(model):
    rows = torch.randint(29, (3, 11), generator=torch.Generator().manual_seed(1))
    shape, weights = llama.Shape.of(model.config), llama.copy(llama.from_transformers(model))
    ours, theirs = llama.logits(weights, rows, shape), model(input_ids=rows).logits
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    for name, parameter in (("embedding", "model.embed_tokens"), ("1.gate", "model.layers.1.mlp.gate_proj")):
        torch.testing.assert_close(weights[name].grad, model.get_submodule(parameter).weight.grad, atol=1e-4, rtol=1e-3)


def test_grouped_log_probs_do_not_depend_on_groups_or_padding(model):
    shape, weights = llama.Shape.of(model.config), llama.from_transformers(model)
    rows = torch.randint(29, (6, 12), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([12, 5, 9, 7, 12, 4])
    grouped = llama.grouped_response_logps(weights, rows, lengths, shape, prompt_tokens=3, group=2)
    for index, length in enumerate(lengths.tolist()):
        scores = llama.logits(weights, rows[index : index + 1, :length], shape).log_softmax(-1)[0]
        alone = sum(scores[place - 1, rows[index, place]] for place in range(3, length))
        torch.testing.assert_close(grouped[index], alone, atol=1e-5, rtol=1e-5)


def test_sampling_with_a_cache_draws_what_full_passes_draw(model):
    shape, weights = llama.Shape.of(model.config), llama.from_transformers(model)
    prompts = torch.randint(3, 29, (5, 4), generator=torch.Generator().manual_seed(3))
    samples = sampling.sample(weights, prompts, shape, seed=7, max_tokens=12, eos=2, banned=(0, 1))
    generator = torch.Generator().manual_seed(7)
    rows = prompts
    for _ in range(4, samples.rows.shape[1]):
        scores = llama.logits(weights, rows, shape)[:, -1]
        scores[:, :2] = -math.inf
        noise = torch.empty(5, 29).exponential_(generator=generator)
        rows = torch.cat([rows, (scores - noise.log()).argmax(-1, keepdim=True)], 1)
    inside = torch.arange(rows.shape[1]) < samples.lengths[:, None]
    assert torch.equal(samples.rows[inside], rows[inside])
    assert bool(samples.finished.any())
    assert all((row[: length - 1] != 2).all() for row, length in zip(samples.rows, samples.lengths, strict=True))


def test_exact_kl_is_the_mean_log_ratio_without_its_noise(model):
    shape, weights = llama.Shape.of(model.config), llama.from_transformers(model)
    other = {name: value + 0.05 * torch.randn(value.shape) for name, value in weights.items()}
    samples = sampling.sample(weights, torch.full((4000, 2), 3), shape, seed=1, max_tokens=6, eos=2, banned=())
    kl = sampling.exact_kl(weights, other, samples, shape, prompt_tokens=2)
    ratio = llama.response_logps(weights, samples.rows, samples.lengths, shape, prompt_tokens=2)
    ratio = ratio - llama.response_logps(other, samples.rows, samples.lengths, shape, prompt_tokens=2)
    assert float(kl.min()) >= 0
    assert float(kl.std()) < float(ratio.std())
    assert float(kl.mean()) == pytest.approx(float(ratio.mean()), abs=4 * float(ratio.std()) / math.sqrt(4000))
    same = sampling.exact_kl(weights, weights, samples, shape, prompt_tokens=2)
    assert torch.equal(same, torch.zeros(4000))


def test_summed_valences_give_the_languages_reward():
    rng = random.Random(0)
    for text in [write_review(rng) for _ in range(50)]:
        bounded = float(toy.reward(torch.tensor(toy.valence_sum(text), dtype=torch.float64), "bounded"))
        assert bounded == pytest.approx(true_reward(text), abs=1e-12)


def test_every_arm_of_the_plan_is_a_method_with_legal_parameters():
    for part in PARTS:
        for job in jobs(part):
            if isinstance(job, ToyJob):
                ARMS[job.arm].at(job.beta)


def test_a_tiny_world_trains_measures_and_repeats_itself(tmp_path):
    first = execute(toy_job("beta_dpo"), tmp_path, toy.TINY)
    assert {"reward", "kl", "grammatical", "tokens", "implicit_accuracy"} <= set(first)
    assert first["kl"] > 0
    assert -3 <= first["reward"] <= 3
    assert execute(toy_job("beta_dpo"), tmp_path, toy.TINY) == first
    toy.world.cache_clear()
    assert execute(toy_job("beta_dpo"), tmp_path / "elsewhere", toy.TINY) == first


def test_arms_of_a_tiny_world_meet_the_same_pairs_and_tiers_the_same_chance(tmp_path, monkeypatch):
    # With all weights 1 it is DPO: the same pairs in the same order, the same noise, so the same figures.
    monkeypatch.setitem(ARMS, "weightless", Arm("madpo", lambda beta: {"beta": beta, "c_max": 1.0}))
    weightless = execute(toy_job("weightless"), tmp_path, toy.TINY)
    assert weightless == pytest.approx(execute(toy_job("dpo"), tmp_path, toy.TINY), rel=1e-4)
    world = toy.world(0, tmp_path, toy.TINY)
    high, medium, low = (toy.label(world.candidates, tier, "bounded", seed=0) for tier in ("high", "medium", "low"))
    assert torch.equal(medium.rows[0::2], low.rows[0::2])
    assert torch.equal(medium.rows[1::2], high.rows[1::2])
    described = execute(RewardModelJob("high", "bounded", 0, "llama-32"), tmp_path, toy.TINY)
    assert 0 <= described["ece"] <= 0.5
    assert 0 <= described["contradicted"] <= 1


def test_bandit_settings_train_apart_though_they_are_stacked():
    seeds = [3, 4, 5]
    worlds = bandit.make_worlds(seeds, "medium", "bounded")
    margins = bandit.reward_margins(worlds, seeds, "medium", "bounded", "mlp-256")
    settings = [bandit.Setting("dpo", 0.1), bandit.Setting("beta_dpo", 0.2), bandit.Setting("posterior_0.25", 0.1)]
    rewards, divergences, accuracy = bandit.train_all(worlds, seeds, margins, settings, learning_rate=1e-2, steps=8)
    assert rewards.shape == divergences.shape == (3, 3)
    assert float(divergences.min()) > 0
    assert 0.5 < float(accuracy.mean()) < 1
    for index, setting in enumerate(settings):
        alone = bandit.train_all(worlds, seeds, margins, [setting], learning_rate=1e-2, steps=8)
        torch.testing.assert_close(alone[0][0], rewards[index], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone[1][0], divergences[index], atol=1e-5, rtol=1e-4)
    again = bandit.train_all(worlds, seeds, margins, settings, learning_rate=1e-2, steps=8)
    assert torch.equal(again[0], rewards)


def test_bandit_reward_models_get_better_with_pairs_up_to_the_truth():
    seeds = [6, 7, 8]
    worlds = bandit.make_worlds(seeds, "high", "bounded")
    figures = [
        bandit.describe(worlds, bandit.reward_margins(worlds, seeds, "high", "bounded", name))
        for name in ("mlp-64", "mlp-4096", "truth")
    ]
    accuracies = [each["noiseless_accuracy"] for each in figures]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] > 0.5
    assert accuracies[-1] == 1.0
    assert figures[-1]["accuracy"] < 1.0  # labels are noisy whoever judges them
    assert figures[-1]["temperature"] == pytest.approx(1.0, abs=0.1)


def test_the_bandits_policy_that_knows_nothing_is_the_reference():
    seeds = [0, 1]
    worlds = bandit.make_worlds(seeds, "low", "unbounded")
    rewards, divergences, _ = bandit.train_all(
        worlds, seeds, torch.zeros(2, bandit.PAIRS), [bandit.Setting("rm_soft", 0.1)], learning_rate=1e-2, steps=0
    )
    torch.testing.assert_close(divergences, torch.zeros(1, 2), atol=1e-6, rtol=0)
    expected = (worlds.reference.exp() * worlds.rewards).sum(-1).mean(1)
    torch.testing.assert_close(rewards[0], expected, atol=1e-5, rtol=1e-5)


def test_reward_at_equal_kl_is_read_between_neighbours_and_never_beyond():
    curve = {0.4: (1.0, 0.5), 0.1: (9.0, 2.0), 0.2: (4.0, 1.5)}
    assert reward_at(curve, 4.0) == pytest.approx(1.5)
    # In sqrt(KL) the points are (1, 0.5), (2, 1.5), (3, 2.0), with slopes 1.25, 2/3 and 0.25: worked by hand.
    assert reward_at(curve, 6.25) == pytest.approx(1.75 + (2 / 3 - 0.25) / 8)
    assert reward_at(curve, 1.0) == 0.5
    assert reward_at(curve, 0.9) is None
    assert reward_at(curve, 9.1) is None
    assert rewards_at({1: curve, 2: {0.1: (1.0, 1.0)}}, 4.0) == {1: pytest.approx(1.5)}


def test_interpolation_is_exact_on_roots_and_does_not_overshoot():
    roots = {index: (kl, 0.3 + 2 * math.sqrt(kl)) for index, kl in enumerate((1.0, 2.0, 4.0))}
    for kl in (1.3, 2.5, 3.7):
        assert reward_at(roots, kl) == pytest.approx(0.3 + 2 * math.sqrt(kl), abs=1e-12)
    peak = {0: (1.0, 0.0), 1: (2.0, 1.0), 2: (3.0, 0.9), 3: (4.0, 0.0)}
    values = [reward_at(peak, 1 + step / 100) for step in range(301)]
    assert max(values) == pytest.approx(1.0)
    assert min(values) == pytest.approx(0.0)


def test_paired_differences_have_the_interval_of_students_t():
    estimate = paired({1: 1.0, 2: 2.0, 3: 4.0, 9: 7.0}, {1: 0.5, 2: 1.0, 3: 2.0})
    assert (estimate.mean, estimate.seeds) == (pytest.approx(7 / 6), 3)
    assert estimate.standard_error == pytest.approx(math.sqrt(7 / 36))
    assert estimate.half_width == pytest.approx(4.303 * estimate.standard_error)
    assert math.isnan(Estimate.of([1.0]).half_width)


def made_up(bonus: dict[str, float]) -> list[dict]:
    """Records of a whole frontier whose reward is sqrt(KL), plus a bonus, plus noise that all arms of a seed share."""
    records = []
    for job in jobs("frontier-high"):
        if isinstance(job, ToyJob):
            kl = 1 / job.beta
            reward = math.sqrt(kl) + bonus.get(job.arm, 0.0) + math.sin(job.seed)
            noise = random.Random(f"{job.arm} {job.seed}").gauss(0, 0.02)
            values = {"kl": kl, "reward": reward + noise, "grammatical": 0.9}
            records.append(json.loads(to_line(job, values)))
    return records


@pytest.mark.parametrize(
    ("bonus", "expected"),
    [
        ({"posterior_0.25": 0.1}, "**yes**"),
        ({"posterior_0.25": 0.1, "rm_soft": 0.1}, "no"),
        ({"posterior_0.25": 0.1, "madpo": 0.2}, "no"),
        ({}, "no"),
    ],
)
def test_the_verdict_asks_for_three_standard_errors_over_all_three_baselines(bonus, expected):
    rows = [row for row in tables(made_up(bonus))["verdict"].splitlines() if "| posterior_0.25 |" in row]
    assert len(rows) == 1
    assert rows[0].split(" | ")[-1].startswith(expected)


def test_tables_leave_out_seeds_whose_sweep_is_not_whole():
    def against_dpo(records):
        rows = tables(records)["frontier-high"].splitlines()
        return [row.split(" | ")[5] for row in rows if row.startswith(("| madpo |", "| rm_soft |"))]

    records = made_up({})
    cut = [
        each for each in records if (each["job"]["arm"], each["job"]["seed"], each["job"]["beta"]) != ("dpo", 101, 0.1)
    ]
    assert all(row.endswith(", 8)") for row in against_dpo(records))
    assert all(row.endswith(", 7)") for row in against_dpo(cut))


def test_records_survive_a_crash_and_say_what_is_done(tmp_path):
    one, other = toy_job("dpo"), RewardModelJob("low", "bounded", 3, "words")
    path = tmp_path / "results.jsonl"
    path.write_text(to_line(one, {"reward": 1.23456789}) + to_line(other, {"accuracy": 0.5})[:-20])
    records = read(path)
    assert [each["values"] for each in records] == [{"reward": 1.23457}]
    assert done(records) == {key(identity(one))}
    assert key(identity(other)) not in done(records)
    assert json.loads(to_line(one, {}))["job"]["kind"] == "toy"


def test_the_documents_numbers_come_from_the_committed_results():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "<!-- begin verdict -->" in text
    assert fill(text, read(RESULTS)) == text
