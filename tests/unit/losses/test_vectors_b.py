from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from madpo.losses.adpo import adpo_loss, anchored_score
from madpo.losses.adpo_list import list_cross_entropy, list_target
from madpo.losses.adpo_pl import plackett_luce_terms
from madpo.losses.alpha_dpo import ALPHA_DPO, AlphaDpoConfig
from madpo.losses.aot import aot_terms
from madpo.losses.apo_accel import extrapolate
from madpo.losses.beta_dpo import batch_beta, gap_log_score
from madpo.losses.dpo import dpo_loss
from madpo.losses.irpo import irpo_terms, irpo_weight
from madpo.losses.kto import kto_reference_point, kto_terms
from madpo.losses.moments import running_moments
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.rso import rso_accept
from madpo.losses.sem_dpo import semantic_weight
from madpo.losses.sppo import sppo_loss
from madpo.losses.x_adpo_kde import kde_target, smoothed_ranks
from madpo.losses.x_spo import likelihood_violation, positive_loss
from tests.unit.losses.batches import VECTORS, full_batch, gradients, train_step
from tests.unit.losses.vectors import check, dtypes

pytestmark = pytest.mark.methods


def column(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def shared(name: str, dtype: torch.dtype) -> Tensor:
    return column(VECTORS["batch"][name], dtype)


PLAIN = [
    ("updpo_lcb_k1", "updpo", {"scheme": "lcb"}),
    ("updpo_mult_t1", "updpo", {"scheme": "scale"}),
    ("updpo_weight_t1", "updpo", {"scheme": "weight"}),
    ("semdpo_a1", "sem_dpo", {}),
    ("exo_eps1e-3", "exo_pair", {}),
    ("nca", "nca_pair", {"beta": 0.1}),
    ("bco_pair", "bco_pair", {"beta": 0.1}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("discopop_t0.05", "discopop", {"beta": 0.1}),
    ("dpo", "rso", {"beta": 0.1}),
    ("hinge", "rso", {"beta": 0.1, "link": "hinge"}),
    ("dpo", "apo_accel", {}),
]


@dtypes
@pytest.mark.parametrize(("vector", "method", "params"), PLAIN, ids=[f"{name}-{method}" for name, method, _ in PLAIN])
def test_losses_of_pairs_and_their_mean(vector: str, method: str, params: dict[str, Any], dtype: torch.dtype) -> None:
    loss, (output,), _ = train_step(METHODS[method], parse_params(method, params), full_batch(dtype))

    check(vector, dtype, each=output.per_pair, mean=loss)


@dtypes
def test_weights_of_pairs(dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    distance = batch.require("semantic_distance")

    check("semdpo_a1", dtype, d=distance, w=semantic_weight(distance, alpha=1.0))
    output = train_step(METHODS["updpo"], parse_params("updpo", {"scheme": "weight"}), batch).outputs[0]
    check("updpo_weight_t1", dtype, U=-output.weight.log())


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
def test_adpo_on_pairs(dtype: torch.dtype) -> None:
    rewards = column([1, 0.2, 2, -1], dtype) - column([0.2, 0.7, -1, 2.5], dtype)
    batch = replace(full_batch(dtype), reward_margin=rewards)

    loss, (output,), _ = train_step(METHODS["adpo"], parse_params("adpo", {"tau": 10, "beta_r": 1}), batch)
    u = anchored_score(batch.log_ratio_diff.detach(), tau=10).requires_grad_()
    adpo_loss(u, output.metrics["adpo/target"]).sum().backward()

    check("adpo_pair", dtype, each=output.per_pair, mean=loss, q=output.metrics["adpo/target"])
    check("adpo_pair", dtype, tau=(batch.log_ratio_diff / u)[0], grad_u=0.25 * u.grad)  # type: ignore[operator]


@dtypes
def test_the_soft_label_of_two_scores_is_the_share_of_their_noisy_labels(dtype: torch.dtype) -> None:
    values = VECTORS["gumbel"]
    batch = full_batch(dtype)
    batch = replace(batch, reward_margin=torch.full_like(batch.require("reward_margin"), values["s1"] - values["s2"]))

    for key, scale in (("p", values["scale"]), ("p2", values["scale2"])):
        config = parse_params("adpo", {"beta_r": scale})
        (output,) = train_step(METHODS["adpo"], config, batch).outputs
        check("gumbel", dtype, **{key: output.metrics["adpo/target"][0]})


@dtypes
def test_adpo_on_a_list(dtype: torch.dtype) -> None:
    vector = VECTORS["adpo_list"]
    s, anchor, rewards = (column([vector[name]], dtype) for name in ("s", "anchor", "reward"))
    s.requires_grad_()
    mask = torch.ones(1, 4, dtype=torch.bool)
    scores = anchored_score(s - anchor, tau=vector["tau"])
    raw = list_target(rewards, mask, beta_r=vector["beta_r"])
    standardized = list_target(rewards, mask, beta_r=vector["beta_r"], standardize=True)
    loss_raw = list_cross_entropy(scores, raw, mask).squeeze()
    loss_raw.backward(retain_graph=True)

    check("adpo_list", dtype, u=scores[0], p=scores.softmax(dim=1)[0], q_raw=raw[0], q_std=standardized[0])
    check("adpo_list", dtype, loss_raw=loss_raw, kl_raw=loss_raw + (raw * raw.log()).sum())
    check("adpo_list", dtype, loss_std=list_cross_entropy(scores, standardized, mask).squeeze())
    check("adpo_list", dtype, grad_s_raw=s.grad[0])  # type: ignore[index]
    # The full batch begins with this list.
    params = {"tau": vector["tau"], "beta_r": vector["beta_r"]}
    for key, standardize in (("loss_raw", False), ("loss_std", True)):
        config = parse_params("adpo_list", params | {"standardize": standardize})
        output = train_step(METHODS["adpo_list"], config, full_batch(dtype)).outputs[0]
        check("adpo_list", dtype, **{key: output.per_pair[0]})


@dtypes
def test_adpo_on_a_ranking(dtype: torch.dtype) -> None:
    vector, mask = VECTORS["adpo_list"], torch.ones(1, 4, dtype=torch.bool)
    scores, rewards = column([vector["u"]], dtype), column([vector["reward"]], dtype)
    terms = plackett_luce_terms(scores, rewards, mask)[0]

    check("plackett_luce", dtype, per_position=terms, sum=terms.sum(), mean=terms.mean())
    for reduction in ("sum", "mean"):
        config = parse_params("adpo_pl", {"tau": vector["tau"], "reduction": reduction})
        output = train_step(METHODS["adpo_pl"], config, full_batch(dtype)).outputs[0]
        check("plackett_luce", dtype, **{reduction: output.per_pair[0]})


@dtypes
def test_adpo_with_smoothed_ranks(dtype: torch.dtype) -> None:
    rewards, mask = column([VECTORS["kde"]["reward"]], dtype), torch.ones(1, 4, dtype=torch.bool)
    ranks = smoothed_ranks(rewards, mask)

    check("kde", dtype, bw=ranks.bandwidth.squeeze(), cdf=ranks.rank[0], logit=ranks.logit[0])
    check("kde", dtype, q=kde_target(rewards, mask, beta_r=1)[0])
    check("kde", dtype, q_raw_for_contrast=list_target(rewards, mask, beta_r=1)[0])


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
def test_sppo(dtype: torch.dtype) -> None:
    vector, batch = VECTORS["sppo_soft"], full_batch(dtype)
    wins = column(vector["p_win"], dtype), column(vector["p_lose"], dtype)

    each = sppo_loss(batch.chosen_log_ratio, batch.rejected_log_ratio, *wins, beta=1 / vector["eta"])
    hard = train_step(METHODS["sppo"], parse_params("sppo", {"beta": 0.1, "win_probability": "hard"}), batch)

    check("sppo_soft", dtype, each=each, mean=each.mean())
    # TRL leaves out the factor 1/2.
    check("sppo_hard_trl_b0.1", dtype, each=2 * hard.outputs[0].per_pair, mean=2 * hard.loss)


@dtypes
def test_irpo(dtype: torch.dtype) -> None:
    vector, mask = VECTORS["irpo"], torch.ones(1, 4, dtype=torch.bool)
    weight = irpo_weight(column([vector["rel"]], dtype), mask)
    terms = irpo_terms(column([vector["r"]], dtype), weight, mask, beta=1.0)

    check("irpo", dtype, w=weight[0], per_item=terms[0], loss=terms.mean())
    # The full batch begins with this list; its last score is below 0 and counts as 0.
    output = train_step(METHODS["irpo"], parse_params("irpo", {}), full_batch(dtype)).outputs[0]
    check("irpo", dtype, loss=output.per_pair[0])


@dtypes
def test_rso_accepts_candidates(dtype: torch.dtype) -> None:
    vector = VECTORS["rso"]

    check("rso", dtype, accept=rso_accept(column(vector["r"], dtype), temperature=vector["beta"]))


@dtypes
def test_accelerated_optimisation_moves_on(dtype: torch.dtype) -> None:
    vector = VECTORS["apo_accel"]
    new, previous = column(vector["logits_new"], dtype), column(vector["logits_prev"], dtype)

    check("apo_accel", dtype, p_extrap=extrapolate(new, previous, alpha=vector["alpha"]).softmax(dim=0))


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
