"""What the property tests run over: every method with its defaults, and the parameters that change what it does."""

from typing import Any

import pytest

from madpo.losses.registry import METHODS, parse_params

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"label_smoothing": 0.1}),
    ("dpo", {"reference_free": True}),
    ("robust", {"label_smoothing": 0.4}),
    ("ipo", {"average_log_prob": False}),
    ("hinge", {"beta": 0.7}),
    ("ld_dpo", {"alpha": 0.0}),
    ("ld_dpo", {"alpha": 1.0}),
    ("f_dpo", {"divergence": "reverse_kl"}),
    ("f_dpo", {"divergence": "js"}),
    ("f_dpo", {"divergence": "alpha"}),
    ("rpo", {"sft_weight": 1.0, "sft_reduction": "sequence", "beta": 0.1}),
    ("rpo", {"sft_weight": 0.0}),
    ("wpo", {"clip_weight": True}),
    ("tr_dpo", {"alpha": 0.0}),
    ("madpo", {"c_max": 4, "c_min": 0.25, "tau": 2}),
    ("madpo", {"mode": "amp_only", "tau": 2}),
    ("madpo", {"mode": "reg_only", "tau": 2}),
    ("madpo", {"clip_negative": False, "tau": 2}),
    ("madpo", {"normalize_weights": True, "tau": 2}),
    ("madpo_posterior", {"label_weight": 0.0, "tau": 2}),
    ("madpo_posterior", {"label_weight": 1.0, "clip_negative": False, "tau": 2}),
    ("madpo_posterior", {"normalize_weights": True, "tau": 2}),
    ("simpo", {"label_smoothing": 0.1, "gamma_beta_ratio": 0.5}),
    ("simpo", {"link": "hinge"}),
    ("simpo", {"sft_weight": 0.2}),
    ("alphapo", {"alpha": 0.0}),
    ("alphapo", {"alpha": -1.0}),
    ("cpo", {"sft_weight": 0.0}),
    ("tpo", {"sft_weight": 0.0}),
    ("tpo_l", {"sft_weight": 0.0}),
    ("slic", {"sft_target": "gold"}),
    ("slic", {"sft_weight": 0.0}),
    ("odpo", {"scale": "identity"}),
    ("focalpo", {"gamma": 1.4}),
    ("focalpo", {"gamma": 2.0, "detach_weight": True}),
    ("bpo", {"alpha": 0.5}),
    ("adpo", {"anchor": "ema", "score_clamp": 1.5}),
    ("adpo_list", {"standardize": False, "label_smoothing": 0.1, "poly_weight": 1.0}),
    ("adpo_list", {"average_log_prob": True, "anchor": "on_policy"}),
    ("adpo_pl", {"top_k": 2, "reduction": "sum"}),
    ("adpo_pl", {"average_log_prob": True, "anchor": "kl"}),
    ("x_adpo_kde", {"average_log_prob": True}),
    ("alpha_dpo", {"form": "paper", "bias_correction": False}),
    ("alpha_dpo", {"average_log_prob": False}),
    ("beta_dpo", {"filter_ratio": 0.0}),
    ("beta_dpo", {"filter_ratio": 0.5, "beta_from": "all", "gap_scale": "reward"}),
    ("beta_dpo", {"bias_correction": False, "initial_std": 1.0}),
    ("bco_pair", {"center": True}),
    ("discopop", {"temperature": 1.0}),
    ("exo_pair", {"label_smoothing": 0.2}),
    ("irpo", {"weighting": "log_discount"}),
    ("irpo", {"weighting": "gain_discount"}),
    ("kto", {"desirable_weight": 1.5, "beta": 1.0}),
    ("rso", {"link": "hinge"}),
    ("sppo", {"win_probability": "list"}),
    ("sppo", {"win_probability": "hard", "iteration_steps": 10}),
    ("updpo", {"scheme": "scale"}),
    ("updpo", {"scheme": "weight"}),
    ("x_sgdpo", {"pilot": "shared", "chosen_ratio": 0.3}),
    ("x_sgdpo", {"chosen_ratio": 0.0, "rejected_ratio": 1.0}),
    ("x_spo", {"positive_weight": 0.5}),
    ("x_spo", {"slack": 10.0}),
    ("x_spo", {"bound": "best"}),
]


def _name(method: str, params: dict[str, Any]) -> str:
    return "-".join([method, *(f"{name}={value}" for name, value in params.items())])


configured = pytest.mark.parametrize(
    ("method", "config"),
    [
        pytest.param(METHODS[name], parse_params(name, params), id=_name(name, params))
        for name, params in [*((name, {}) for name in METHODS), *VARIANTS]
    ],
)
methods = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
