"""alpha-DPO: a margin of each pair, standardised over the batch."""

import pytest
import torch

from tests.unit.losses.batches import full_batch
from tests.unit.losses.steps import assert_equal_training, step, trained


def test_z_is_standardised_over_the_first_batch() -> None:
    z = step("alpha_dpo").outputs[0].metrics["alpha_dpo/z"]

    assert float(z.mean()) == pytest.approx(0, abs=1e-12)
    assert float(z.std()) == pytest.approx(1)


def test_alpha_dpo_has_simpo_s_gradient_at_its_own_margin() -> None:
    result, found = trained("alpha_dpo", full_batch())
    batch = full_batch()
    s = batch.policy_chosen_logps / batch.require("chosen_tokens") - batch.policy_rejected_logps / batch.require(
        "rejected_tokens"
    )
    margin = 0.6 + 0.2 * result.outputs[0].metrics["alpha_dpo/z"]

    expected = -2.5 / batch.require("chosen_tokens") * torch.sigmoid(-2.5 * (s - margin)).detach() / 4
    torch.testing.assert_close(found["policy_chosen_logps"], expected)


def test_the_paper_s_form_is_the_code_s_with_alpha_over_beta() -> None:
    paper = trained("alpha_dpo", full_batch(), form="paper", alpha=0.2)
    code = trained("alpha_dpo", full_batch(), form="code", alpha=0.2 / 2.5)

    assert_equal_training(paper, code)
