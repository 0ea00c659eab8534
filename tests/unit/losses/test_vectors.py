"""Numbers of methods on pairs: the DPO family, methods of the margin, methods without a reference, reward modelling."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.losses.focalpo import focalpo_loss
from madpo.losses.ld_dpo import LD_DPO, LdDpoConfig, length_desensitized_logps
from madpo.losses.madpo import MADPO, MadpoConfig, madpo_coefficient, madpo_weight
from madpo.losses.method import LossBatch, LossContext
from madpo.losses.odpo import odpo_offset
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.terms import average_logps
from madpo.losses.wpo import sequence_log_weight
from madpo_trainer.objectives.reward import RewardStep
from tests.unit.losses.batches import VECTORS, Step, full_batch, gradients, take, train_step
from tests.unit.losses.vectors import check, close, column, dtypes


def step(name: str, batch: LossBatch, **params: Any) -> Step:
    return train_step(METHODS[name], parse_params(name, params), batch)


PLAIN = [
    ("cdpo_eps0.1", "dpo", {"label_smoothing": 0.1}),
    ("robust_eps0.1", "robust", {"label_smoothing": 0.1}),
    ("ipo_sum", "ipo", {"average_log_prob": False}),
    ("ipo_avg", "ipo", {}),
    ("hinge", "hinge", {}),
    ("hinge_beta1", "hinge", {"beta": 1.0}),
    ("sigmoid_norm", "dpo_norm", {"beta": 0.1}),
    ("simpo_b2_gbr0.5", "simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
    ("bpo_a1.0", "bpo", {"alpha": 1.0}),
    ("bpo_a0.5", "bpo", {"alpha": 0.5}),
    ("rm_soft", "rm_soft", {}),
    ("cpo_pref_b0.1", "cpo", {"sft_weight": 0.0}),
    ("tpo_pref_b0.01", "tpo", {"beta": 0.01, "sft_weight": 0.0}),
    ("tpo_l_b2_g1.6", "tpo_l", {"beta": 2.0, "gamma": 1.6, "sft_weight": 0.0}),
    ("slic_d1", "slic", {"sft_weight": 0.0}),
    ("focalpo_g0.05", "focalpo", {"gamma": 0.05}),
    ("focalpo_g2.0", "focalpo", {"gamma": 2.0, "detach_weight": True}),
]


@dtypes
@pytest.mark.parametrize(("vector", "method", "params"), PLAIN, ids=[name for name, *_ in PLAIN])
def test_losses_of_pairs_and_their_mean(vector: str, method: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    loss, (output,), _ = step(method, full_batch(dtype), **params)

    check(vector, dtype, each=output.per_pair, mean=loss)


@dtypes
def test_dpo(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    loss, (output,), _ = step("dpo", batch)
    loss.backward()

    check("dpo", dtype, each=output.per_pair, mean=loss, grad_pi_w=gradients(batch)["policy_chosen_logps"])
    close(-gradients(batch)["policy_rejected_logps"], VECTORS["dpo"]["grad_pi_w"], dtype)


@dtypes
@pytest.mark.parametrize("setting", ["madpo_A", "madpo_B"])
def test_madpo(setting: str, dtype: torch.dtype) -> None:
    values, batch = VECTORS[setting]["params"], full_batch(dtype)
    params = {"c_max": values["cx"], "c_min": values["cn"], "lam": values["lam"], "tau": values["tau"]}
    h = column(VECTORS[setting]["h"], dtype)

    loss, (output,), _ = train_step(MADPO, MadpoConfig(**params), batch)
    loss.backward()

    check(setting, dtype, c=madpo_coefficient(h, **params), w=madpo_weight(h, **params))
    check(setting, dtype, batch_c=output.metrics["madpo/coefficient"], batch_w=output.weight)
    check(setting, dtype, batch_loss_each=output.per_pair, batch_loss_mean=loss)
    check(setting, dtype, grad_pi_w=gradients(batch)["policy_chosen_logps"])
    close(-gradients(batch)["policy_rejected_logps"], VECTORS[setting]["grad_pi_w"], dtype)


@dtypes
@pytest.mark.parametrize("setting", ["A", "B"])
@pytest.mark.parametrize("label_weight", [0, 0.25, 1])
def test_madpo_posterior(setting: str, label_weight: float, dtype: torch.dtype) -> None:
    values, batch = VECTORS[f"madpo_{setting}"]["params"], full_batch(dtype)
    params = {"c_max": values["cx"], "c_min": values["cn"], "lam": values["lam"], "tau": values["tau"]}

    loss, (output,), _ = step("madpo_posterior", batch, label_weight=label_weight, **params)
    loss.backward()

    vector = f"madpo_posterior_{setting}_a{label_weight}"
    check(vector, dtype, each=output.per_pair, mean=loss, grad_pi_w=gradients(batch)["policy_chosen_logps"])
    close(-gradients(batch)["policy_rejected_logps"], VECTORS[vector]["grad_pi_w"], dtype)


@dtypes
def test_averaged_log_probs(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    chosen, rejected = batch.require("chosen_tokens"), batch.require("rejected_tokens")

    log_ratios = average_logps(batch.chosen_log_ratio, chosen) - average_logps(batch.rejected_log_ratio, rejected)
    logps = average_logps(batch.policy_chosen_logps, chosen) - average_logps(batch.policy_rejected_logps, rejected)

    check("ipo_avg", dtype, delta_avg=log_ratios)
    check("simpo_b2_gbr0.5", dtype, s=logps)


@dtypes
def test_rpo_in_both_reductions(dtype: torch.dtype) -> None:
    token = step("rpo", full_batch(dtype), beta=0.1, sft_weight=0.005)
    sequence = step("rpo", full_batch(dtype), beta=0.1, sft_weight=1.0, sft_reduction="sequence")

    check("rpo", dtype, loss=token.loss)
    check("iterative_rpo", dtype, loss=sequence.loss, per_pair=sequence.outputs[0].per_pair)


@dtypes
def test_cpo_with_its_likelihood(dtype: torch.dtype) -> None:
    check("cpo_pref_b0.1", dtype, loss_alpha1=step("cpo", full_batch(dtype)).loss)


@dtypes
def test_orpo(dtype: torch.dtype) -> None:
    loss, (output,), _ = step("orpo", full_batch(dtype))
    odds_term = step("orpo", full_batch(dtype), lam=1.0).outputs[0].per_pair

    check("orpo_or_term", dtype, each=odds_term, mean=odds_term.mean(), log_odds=output.metrics["orpo/log_odds"])
    check("orpo_or_term", dtype, **{"loss_lam0.1": loss, "sft_token": output.aux["nll"]})


@dtypes
def test_tpo_with_its_gold_response(dtype: torch.dtype) -> None:
    tpo, tpo_l = step("tpo", full_batch(dtype)), step("tpo_l", full_batch(dtype))

    check("tpo_pref_b0.01", dtype, loss_alpha1=tpo.loss, nll_token_mean=tpo.outputs[0].aux["gold_nll"])
    check("tpo_l_b2_g1.6", dtype, loss_alpha1=tpo_l.loss)


@dtypes
def test_slic_with_a_gold_target(dtype: torch.dtype) -> None:
    gold = step("slic", full_batch(dtype), sft_weight=0.1, sft_target="gold")

    check("slic_d1", dtype, **{"loss_lam0.1_gold_sum": gold.loss})


@dtypes
@pytest.mark.parametrize(("vector", "scale"), [("odpo_log_a1", "log"), ("odpo_id_a1", "identity")])
def test_odpo(vector: str, scale: Any, dtype: torch.dtype) -> None:
    gaps = column([0.8, 0.5, 3.0, 3.5], dtype)
    batch = full_batch(dtype)
    columns = {"policy_chosen_logps": batch.policy_chosen_logps, "policy_rejected_logps": batch.policy_rejected_logps}
    references = {name: batch.require(name) for name in ("ref_chosen_logps", "ref_rejected_logps")}

    loss, (output,), _ = step("odpo", LossBatch(**columns, **references, reward_margin=gaps), scale=scale)

    check(vector, dtype, each=output.per_pair, mean=loss)
    if scale == "log":
        check(vector, dtype, offset=odpo_offset(gaps, alpha=1.0))


@dtypes
@pytest.mark.parametrize("gamma", [0.05, 2.0])
@pytest.mark.parametrize("detach_weight", [False, True])
def test_focalpo_and_its_slope(gamma: float, detach_weight: bool, dtype: torch.dtype) -> None:
    u = 0.1 * column(VECTORS["batch"]["delta"], dtype)
    u.requires_grad_()
    each = focalpo_loss(u, beta=1.0, gamma=gamma, detach_weight=detach_weight)
    each.sum().backward()

    keys = {"loss_detached": each.mean(), "grad_u_detached": u.grad} if detach_weight else {"grad_u": u.grad}
    check(f"focalpo_g{gamma}", dtype, each=each, mean=each.mean(), **keys)


@dtypes
def test_bpo_trains_the_weaker_side(dtype: torch.dtype) -> None:
    for vector, alpha in (("bpo_a1.0", 1.0), ("bpo_a0.5", 0.5)):
        batch = full_batch(dtype)
        step("bpo", batch, alpha=alpha).loss.backward()
        chosen, rejected = (gradients(batch)[f"policy_{side}_logps"] for side in ("chosen", "rejected"))
        sides = {"w": (True, False), "l": (False, True), "tie": (True, True)}

        assert list(zip((chosen != 0).tolist(), (rejected != 0).tolist(), strict=True)) == [
            sides[side] for side in VECTORS[vector]["active"]
        ]
        m = 0.1 * batch.chosen_log_ratio.minimum(-alpha * batch.rejected_log_ratio)
        check(vector, dtype, m=m)


@dtypes
def test_ld_dpo(dtype: torch.dtype) -> None:
    vector = VECTORS["ld_dpo"]
    rows = {name: column([vector[f"tok_{name}"]], dtype) for name in ("pi_w", "pi_l", "ref_w", "ref_l")}
    masks = {side: torch.ones_like(rows[f"pi_{side}"]).bool() for side in ("w", "l")}
    batch = LossBatch(
        policy_chosen_logps=rows["pi_w"].sum(dim=1),
        policy_rejected_logps=rows["pi_l"].sum(dim=1),
        chosen_token_logps=rows["pi_w"],
        rejected_token_logps=rows["pi_l"],
        ref_chosen_token_logps=rows["ref_w"],
        ref_rejected_token_logps=rows["ref_l"],
        chosen_token_mask=masks["w"],
        rejected_token_mask=masks["l"],
    )

    for key, alpha in (("loss_b01", 0.5), ("loss_alpha1", 1.0), ("loss_alpha0", 0.0)):
        output = LD_DPO.loss(LdDpoConfig(alpha=alpha), batch, LossContext())
        check("ld_dpo", dtype, **{key: output.per_pair.squeeze()})
    for side in ("w", "l"):
        log_ratios = rows[f"pi_{side}"] - rows[f"ref_{side}"]
        rho = length_desensitized_logps(log_ratios, masks[side], torch.tensor([3]), alpha=0.5)
        check("ld_dpo", dtype, **{f"rho_{side}": rho.squeeze()})


@dtypes
def test_wpo_weighs_a_response(dtype: torch.dtype) -> None:
    vector = VECTORS["wpo"]
    probs = column(vector["probs"], dtype)
    token_logps = probs.gather(1, torch.tensor(vector["tokens"])[:, None]).squeeze(1).log()
    log_sum_p2 = probs.square().sum(dim=1).log()
    mask = torch.ones(1, 2, dtype=torch.bool)

    check("wpo", dtype, log_terms=token_logps - log_sum_p2)
    check("wpo", dtype, w=sequence_log_weight(token_logps[None], log_sum_p2[None], mask).exp().squeeze())


@dtypes
def test_the_batch_is_that_of_the_vectors(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)

    check("batch", dtype, pi_w=batch.policy_chosen_logps, pi_l=batch.policy_rejected_logps)
    check("batch", dtype, rho_w=batch.chosen_log_ratio, rho_l=batch.rejected_log_ratio, delta=batch.log_ratio_diff)
    for side, key in (("chosen", "w"), ("rejected", "l")):
        mask = batch.require(f"{side}_token_mask")
        assert torch.equal(mask.sum(dim=1), batch.require(f"{side}_tokens"))
        for model, prefix in (("pi", ""), ("ref", "ref_")):
            sums = batch.require(f"{prefix}{side}_token_logps").where(mask, 0.0).sum(dim=1)
            close(sums, VECTORS["batch"][f"{model}_{key}"], dtype)
    assert torch.equal(take(batch, [2, 0]).require("list_mask"), batch.require("list_mask")[[2, 0]])


class Scores:
    """A reward model whose rejected responses score 0."""

    def pair(self, index: int) -> int:
        return index

    def scores(self, pairs: Sequence[int]) -> Tensor:
        chosen = torch.tensor(VECTORS["batch"]["margin_h"])[list(pairs)]
        return torch.stack([chosen, torch.zeros_like(chosen)], dim=1)


def test_reward_modelling_is_the_likelihood_of_bradley_terry() -> None:
    training = RewardStep(Scores(), range(4))  # type: ignore[arg-type]

    each = torch.stack([4 * training.loss([place]) for place in range(4)])

    check("rm_bt", torch.float32, each=each, mean=each.mean())
