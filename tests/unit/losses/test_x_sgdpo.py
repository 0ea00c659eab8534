"""Self-guided DPO: pilots, drawn for each pair alone."""

import math
from typing import Any

import pytest
import torch

from madpo.losses.dpo import dpo_loss
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.x_sgdpo import XSgdpoConfig, guided_log_ratio_diff, pilot_masks
from tests.unit.losses.batches import full_batch, train_step
from tests.unit.losses.steps import SPLIT, assert_equal_training, double, step, trained


def test_without_a_pilot_it_is_dpo() -> None:
    found = step("x_sgdpo", chosen_ratio=0, rejected_ratio=0).outputs[0].per_pair

    torch.testing.assert_close(found, step("dpo").outputs[0].per_pair)


def test_a_pilot_of_all_rejected_tokens_leaves_the_rejected_response_out() -> None:
    batch = full_batch()
    result, found = trained("x_sgdpo", batch, chosen_ratio=1, rejected_ratio=1)

    expected = dpo_loss(2 * batch.chosen_log_ratio.detach(), beta=0.1)
    torch.testing.assert_close(result.outputs[0].per_pair.detach(), expected)
    assert not found["rejected_token_logps"].any()


@pytest.mark.parametrize("pilot", ["independent", "shared"])
def test_pilots_have_their_size_and_lie_on_the_response(pilot: Any) -> None:
    batch = full_batch()
    masks = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    for ratios in ((0.5, 0.5), (0.3, 0.7), (0.0, 1.0)):
        config = XSgdpoConfig(chosen_ratio=ratios[0], rejected_ratio=ratios[1], pilot=pilot)
        pilots = pilot_masks(*masks, torch.arange(4), config)

        for mask, drawn, ratio in zip(masks, pilots, ratios, strict=True):
            sizes = [math.ceil(round(ratio * tokens, 9)) for tokens in mask.sum(dim=1).tolist()]
            assert drawn.sum(dim=1).tolist() == sizes
            assert not (drawn & ~mask).any()


def test_shared_pilots_take_the_same_places_of_equally_long_responses() -> None:
    mask = torch.ones(8, 20, dtype=torch.bool)

    shared = pilot_masks(mask, mask, torch.arange(8), XSgdpoConfig(pilot="shared"))
    independent = pilot_masks(mask, mask, torch.arange(8), XSgdpoConfig())

    assert torch.equal(*shared)
    assert not torch.equal(*independent)
    assert len({tuple(row.tolist()) for row in shared[0]}) == 8


def test_a_pilot_depends_on_its_pair_alone() -> None:
    batch = full_batch()
    chosen, rejected = batch.require("chosen_token_mask"), batch.require("rejected_token_mask")
    seeds, config = torch.tensor([11, 5, 7, 2**61]), XSgdpoConfig()
    whole = pilot_masks(chosen, rejected, seeds, config)

    # Cut to the longest response of the two, and padded on the left.
    part = pilot_masks(chosen[[2, 0], :12], rejected[[2, 0], :12], seeds[[2, 0]], config)
    shifted = pilot_masks(chosen.roll(3, 1)[:1, :20], rejected.roll(3, 1)[:1, :20], seeds[:1], config)

    for cut, moved, full in zip(part, shifted, whole, strict=True):
        assert torch.equal(cut, full[[2, 0], :12])
        assert torch.equal(moved, full.roll(3, 1)[:1, :20])


def test_the_pilot_counts_chosen_tokens_twice_and_rejected_ones_not_at_all() -> None:
    chosen, rejected = double([[1, 2, 4]]), double([[8, 16, 32]])
    pilots = torch.tensor([[True, False, True]]), torch.tensor([[False, True, False]])

    assert float(guided_log_ratio_diff(chosen, rejected, *pilots)) == (1 + 2 + 4) + (1 + 4) - (8 + 16 + 32) + 16


def test_a_split_batch_draws_the_same_pilots() -> None:
    assert_equal_training(
        trained("x_sgdpo", full_batch(), split=SPLIT, seed=4), trained("x_sgdpo", full_batch(), seed=4)
    )


def test_pilots_change_from_step_to_step() -> None:
    config = parse_params("x_sgdpo", {})

    losses = [train_step(METHODS["x_sgdpo"], config, full_batch(), seed=seed).loss.item() for seed in (0, 0, 1)]

    assert losses[0] == losses[1] != losses[2]
