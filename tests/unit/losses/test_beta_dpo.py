"""beta-DPO: beta from the batch's gap, and pairs drawn by theirs."""

import math
from collections import Counter
from itertools import permutations
from typing import Any

import pytest
import torch

from madpo.losses.beta_dpo import batch_beta, draw_pairs, gap_log_score
from madpo.losses.registry import METHODS, parse_params
from tests.unit.losses.batches import full_batch, take, train_step
from tests.unit.losses.steps import SPLIT, double, step, trained


def test_beta_grows_with_the_gap_from_its_running_mean() -> None:
    means = double([-100, -1, 0.2, 1, 100])
    floored = [float(batch_beta(mean, 0.2, beta=0.1, alpha=0.6)) for mean in means]
    free = [float(batch_beta(mean, 0.2, beta=0.1, alpha=0.6, min_beta=None)) for mean in means]

    assert floored[2] == pytest.approx(0.1, abs=1e-15)
    assert floored == sorted(floored)
    assert floored[0] == 1e-3
    assert free[0] < 0
    assert free[1:] == floored[1:]


def test_equal_gaps_have_equal_scores() -> None:
    score = gap_log_score(torch.full((5,), 1.7), mean=0.3, std=2.0)

    assert torch.equal(score, score[:1].expand(5))


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, 8), (0.3, 7), (0.9, 1), (0.99, 1), (0.0, 10)])
def test_exactly_the_asked_share_of_pairs_is_kept(ratio: float, kept: int) -> None:
    batch = take(full_batch(), [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])

    (output,) = step("beta_dpo", batch, filter_ratio=ratio).outputs

    assert output.kept == kept
    assert output.mask is not None
    assert int(output.mask.sum()) == kept


def test_draws_have_the_probabilities_of_drawing_one_after_the_other() -> None:
    probabilities = [0.5, 0.25, 0.15, 0.1]
    expected: Counter[frozenset[int]] = Counter()
    for first, second in permutations(range(4), 2):
        chance = probabilities[first] * probabilities[second] / (1 - probabilities[first])
        expected[frozenset((first, second))] += chance  # type: ignore[assignment]
    generator, draws = torch.Generator().manual_seed(3), 20_000
    log_score = double(probabilities).log() - 1000

    drawn = Counter(frozenset(draw_pairs(log_score, 2, generator).nonzero().flatten().tolist()) for _ in range(draws))

    for pair, chance in expected.items():
        deviation = math.sqrt(chance * (1 - chance) / draws)
        assert drawn[pair] / draws == pytest.approx(chance, abs=4 * deviation)


def test_every_micro_batch_sees_the_same_draw_and_beta() -> None:
    config = parse_params("beta_dpo", {})
    whole = train_step(METHODS["beta_dpo"], config, full_batch(), seed=5)
    parts = train_step(METHODS["beta_dpo"], config, full_batch(), seed=5, split=SPLIT)

    (output,) = whole.outputs
    assert output.mask is not None
    for rows, part in zip(SPLIT, parts.outputs, strict=True):
        assert part.mask is not None
        assert part.kept == output.kept == 3
        assert torch.equal(part.mask, output.mask[rows])
        assert torch.equal(part.metrics["beta_dpo/beta"], output.metrics["beta_dpo/beta"][rows])
    masks = {tuple(step_mask(seed)) for seed in range(20)}
    assert len(masks) > 1


def step_mask(seed: int) -> list[bool]:
    mask = train_step(METHODS["beta_dpo"], parse_params("beta_dpo", {}), full_batch(), seed=seed).outputs[0].mask
    assert mask is not None
    values: list[bool] = mask.tolist()
    return values


def test_only_drawn_pairs_train() -> None:
    (result, found) = trained("beta_dpo", full_batch())

    assert torch.equal(found["policy_chosen_logps"] != 0, result.outputs[0].mask)  # type: ignore[arg-type]


def test_the_published_variants_of_beta() -> None:
    """Gap as reward: alpha acts beta times as strongly. Beta from all pairs: their mean gap, not the drawn ones'."""
    delta = double([2, -1.25, 1, -2.25])
    state = {"mean": double(0.0), "std": double(1.5), "steps": torch.tensor(1000)}

    def beta(**params: Any) -> float:
        config = parse_params("beta_dpo", params)
        result = train_step(METHODS["beta_dpo"], config, full_batch(), state=state, training=False)
        return float(result.outputs[0].metrics["beta_dpo/beta"][0])

    assert beta(filter_ratio=0) == pytest.approx(0.1 * (1 + 0.6 * float(delta.mean())))
    assert beta(filter_ratio=0, gap_scale="reward") == pytest.approx(0.1 * (1 + 0.06 * float(delta.mean())))
    assert beta(beta_from="all") == beta(filter_ratio=0) != beta()
