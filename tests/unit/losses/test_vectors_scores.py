"""Numbers of methods over scores and lists: ADPO, SPPO, IRPO, RSO."""

from dataclasses import replace

import torch

from madpo.losses.adpo import adpo_loss, anchored_score
from madpo.losses.adpo_list import list_cross_entropy, list_target
from madpo.losses.adpo_pl import plackett_luce_terms
from madpo.losses.irpo import irpo_terms, irpo_weight
from madpo.losses.registry import METHODS, parse_params
from madpo.losses.rso import rso_accept
from madpo.losses.sppo import sppo_loss
from madpo.losses.x_adpo_kde import kde_target, smoothed_ranks
from tests.unit.losses.batches import VECTORS, full_batch, train_step
from tests.unit.losses.vectors import check, column, dtypes


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
