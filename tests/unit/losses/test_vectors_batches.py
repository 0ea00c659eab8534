"""Numbers of methods that read the whole batch: beta-DPO, alpha-DPO, stable optimisation, KTO, AOT."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from madpo.losses.alpha_dpo import ALPHA_DPO, AlphaDpoConfig
from madpo.losses.aot import aot_terms
from madpo.losses.beta_dpo import batch_beta, gap_log_score
from madpo.losses.dpo import dpo_loss
from madpo.losses.kto import kto_reference_point, kto_terms
from madpo.losses.moments import running_moments
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.x_spo import likelihood_violation, positive_loss
from tests.unit.losses.batches import VECTORS, full_batch, gradients, train_step
from tests.unit.losses.vectors import check, column, dtypes, shared


@dtypes
def test_beta_dpo_started_cold(dtype: torch.dtype) -> None:
    delta = shared("delta", dtype)
    moments = running_moments(delta, {}, momentum=0.9, bias_correction=False)
    log_score = gap_log_score(delta, mean=moments.mean, std=moments.std)
    drawn = torch.tensor(VECTORS["beta_dpo"]["mask"]).bool()
    gap = delta[drawn].mean()
    beta = batch_beta(gap, moments.mean, beta=0.1, alpha=0.6)
    each = torch.nn.functional.softplus(-beta * delta)

    check("beta_dpo", dtype, ema_mean=moments.mean, ema_std=moments.std, batch_std_unbiased=delta.std())
    check("beta_dpo", dtype, scores=log_score.exp(), probs=log_score.softmax(dim=0))
    check("beta_dpo", dtype, gap_used=gap, beta_used=beta, each=each, masked_mean=each[drawn].mean())


@dtypes
def test_beta_dpo_draws_the_pairs_of_the_vector(dtype: torch.dtype) -> None:
    """The two ordinary pairs nearly always, with one of the others: for some seeds that of the vector."""
    vector, config = VECTORS["beta_dpo"], parse_params("beta_dpo", {"bias_correction": False})
    delta = shared("delta", dtype)
    masks = []
    for seed in range(8):
        loss, (output,), _ = train_step(METHODS["beta_dpo"], config, full_batch(dtype), seed=seed)
        assert output.kept == vector["k_keep"]
        assert output.mask is not None
        masks.append(output.mask.tolist())
        if masks[-1] == column(vector["mask"], dtype).bool().tolist():
            check("beta_dpo", dtype, masked_mean=loss, each=output.per_pair)
            check("beta_dpo", dtype, beta_used=output.metrics["beta_dpo/beta"][0].to(dtype), gap_used=delta[:3].mean())

    assert column(vector["mask"], dtype).bool().tolist() in masks
    check("beta_dpo", dtype, k_keep=column(sum(masks[0]), dtype), mask=column(vector["mask"], dtype))


@dtypes
def test_beta_dpo_well_under_way(dtype: torch.dtype) -> None:
    vector = VECTORS["beta_dpo_warm"]
    state = {
        "mean": column(vector["ema_mean"], dtype),
        "std": column(vector["ema_std"], dtype),
        "steps": torch.tensor(1000),
    }
    config = parse_params("beta_dpo", {"filter_ratio": 0, "bias_correction": False})

    loss, (output,), _ = train_step(METHODS["beta_dpo"], config, full_batch(dtype), state=state, training=False)

    metrics = output.metrics
    check("beta_dpo_warm", dtype, scores=metrics["beta_dpo/score"], beta_used_all=metrics["beta_dpo/beta"][0])
    check("beta_dpo_warm", dtype, loss_all=loss, gap_used_all=shared("delta", dtype).mean())
    check("beta_dpo_warm", dtype, ema_mean=state["mean"], ema_std=state["std"])


@dtypes
@pytest.mark.parametrize("form", ["code", "paper"])
def test_alpha_dpo(form: Any, dtype: torch.dtype) -> None:
    state = {"mean": column(0.05, dtype), "std": column(0.2, dtype), "steps": torch.tensor(1000)}
    config = AlphaDpoConfig(form=form, bias_correction=False)
    batch = full_batch(dtype)

    loss, (output,), _ = train_step(ALPHA_DPO, config, batch, state=state, training=False)

    check(f"alpha_dpo_{form}", dtype, each=output.per_pair, mean=loss)
    if form == "code":
        z = output.metrics["alpha_dpo/z"]
        assert ALPHA_DPO.observe is not None
        check("alpha_dpo_code", dtype, z=z, margin=0.6 + 0.2 * z, gap=ALPHA_DPO.observe(config, batch)["gap"])


@dtypes
def test_alpha_dpo_started_cold(dtype: torch.dtype) -> None:
    config = AlphaDpoConfig(bias_correction=False)

    _, (output,), state = train_step(ALPHA_DPO, config, full_batch(dtype))

    check("alpha_dpo_first_step", dtype, ema_mean=state["mean"], ema_std=state["std"])
    check("alpha_dpo_first_step", dtype, z=output.metrics["alpha_dpo/z"])


@dtypes
def test_stable_preference_optimisation(dtype: torch.dtype) -> None:
    vector, batch = VECTORS["spo"], full_batch(dtype)
    tokens = shared("len_w", dtype)
    nll = -batch.policy_chosen_logps.sum() / tokens.sum()
    violation = likelihood_violation(nll, column(vector["sft_ref"], dtype), slack=vector["slack"])
    dpo = dpo_loss(batch.log_ratio_diff, beta=0.1).mean()
    positive = train_step(
        METHODS["x_spo"], parse_params("x_spo", {"penalty": 0, "positive_weight": 1}), full_batch(dtype)
    )

    check("spo", dtype, dpo=dpo, sft_token=nll, loss=dpo + vector["lam"] * violation, loss_dpop=positive.loss)
    check("spo", dtype, dpop_term=positive_loss(batch.chosen_log_ratio, beta=1.0))


@dtypes
def test_stable_preference_optimisation_trains_the_bounded_likelihood(dtype: torch.dtype) -> None:
    """The vector's bound of 1.2 nats per token, met by a reference of that likelihood in place of the batch's."""
    batch = full_batch(dtype)
    ref_chosen = batch.require("ref_chosen_logps")
    moved = -1.2 * 57 - ref_chosen.sum()
    bound = replace(batch, ref_chosen_logps=ref_chosen + moved / 4)

    _, (output,), _ = train_step(METHODS["x_spo"], parse_params("x_spo", {}), bound)
    output.aux["likelihood"].backward()

    violation = VECTORS["spo"]["loss"] - VECTORS["spo"]["dpo"]
    torch.testing.assert_close(output.aux["likelihood"].detach(), column(violation, dtype), rtol=1e-5, atol=1e-5)
    gradient = gradients(batch)["policy_chosen_logps"]
    torch.testing.assert_close(gradient, torch.full_like(gradient, -1 / 57))


@dtypes
def test_kto(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    log_ratios = batch.require("mismatched_logps") - batch.require("ref_mismatched_logps")
    point = kto_reference_point(log_ratios)
    desirable, undesirable = kto_terms(batch.chosen_log_ratio, batch.rejected_log_ratio, point, beta=0.1)
    loss = train_step(METHODS["kto"], parse_params("kto", {}), batch).loss

    check("kto_des", dtype, each=desirable, mean=desirable.mean(), z0=point)
    check("kto_und", dtype, each=undesirable, mean=undesirable.mean())
    check("kto_mean", dtype, value=loss)


@dtypes
def test_aot_by_rank(dtype: torch.dtype) -> None:
    pi, ref = shared("pi_w", dtype) - shared("pi_l", dtype), shared("ref_w", dtype) - shared("ref_l", dtype)
    paired = aot_terms(pi, ref, beta=0.1)
    unpaired = aot_terms(shared("rho_w", dtype), shared("rho_l", dtype), beta=0.1)

    check("aot", dtype, each=paired, mean=paired.mean())
    check("aot_unpaired", dtype, each=unpaired, mean=unpaired.mean())


@dtypes
def test_aot_by_pair(dtype: torch.dtype) -> None:
    order = (shared("pi_w", dtype) - shared("pi_l", dtype)).argsort()
    for name in ("aot", "aot_unpaired"):
        loss, (output,), _ = train_step(METHODS[name], parse_params(name, {"beta": 0.1}), full_batch(dtype))

        check(name, dtype, mean=loss)
        if name == "aot":
            check(name, dtype, each=output.per_pair[order])
