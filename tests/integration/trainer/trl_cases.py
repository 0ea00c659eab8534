"""Which method, with which parameters, is which loss of TRL; `docs/methods.md` shows the same list."""

from dataclasses import dataclass, field
from typing import Any, Literal

VERSION = "1.16.0"
TrainerName = Literal["DPO", "KTO", "CPO", "ORPO", "TPO"]


@dataclass(frozen=True)
class Case:
    """A loss that both have."""

    method: str
    trainer: TrainerName
    params: dict[str, Any] = field(default_factory=dict)
    """Ours."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of TRL's config."""
    factor: float = 1.0
    """TRL's loss over ours."""
    prompt_nll: bool = False
    """TRL's likelihood of the chosen responses is that of prompt and response."""
    difference: str = ""
    """What else differs, for the reader."""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method}: {self.trainer}Trainer({options})"


_NO_SMOOTHING = "TRL's `sigmoid` ignores its `label_smoothing`; the one of its `CPOTrainer` is ours, see below."
_HALF = "TRL averages over the 2N responses, we over the N pairs."

CASES = (
    Case("dpo", "DPO", {"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
    Case(
        "dpo",
        "DPO",
        {"beta": 0.3},
        {"loss_type": ["sigmoid"], "beta": 0.3, "label_smoothing": 0.2},
        difference=_NO_SMOOTHING,
    ),
    Case(
        "dpo",
        "CPO",
        {"beta": 0.3, "label_smoothing": 0.2, "reference_free": True},
        {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.2, "cpo_alpha": 0.0},
    ),
    Case("dpo_norm", "DPO", {"beta": 4.0}, {"loss_type": ["sigmoid_norm"], "beta": 4.0}),
    Case(
        "rpo",
        "DPO",
        {"beta": 0.3, "sft_weight": 0.4},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4], "beta": 0.3},
        difference="TRL has no `sft_reduction: sequence`.",
    ),
    Case("robust", "DPO", {"label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    Case("hinge", "DPO", {"beta": 0.3}, {"loss_type": ["hinge"], "beta": 0.3}),
    Case(
        "ipo",
        "DPO",
        {"beta": 0.3},
        {"loss_type": ["ipo"], "beta": 0.3},
        difference="TRL has no `average_log_prob: false`.",
    ),
    Case("exo_pair", "DPO", {"label_smoothing": 0.01}, {"loss_type": ["exo_pair"], "label_smoothing": 0.01}),
    Case("nca_pair", "DPO", {"beta": 0.2}, {"loss_type": ["nca_pair"], "beta": 0.2}),
    Case(
        "bco_pair",
        "DPO",
        {"beta": 0.2},
        {"loss_type": ["bco_pair"], "beta": 0.2},
        difference="TRL has no `center`.",
    ),
    Case(
        "sppo",
        "DPO",
        {"beta": 0.2, "win_probability": "hard"},
        {"loss_type": ["sppo_hard"], "beta": 0.2},
        factor=2.0,
        difference="TRL leaves out the paper's factor 1/2, and has wins of 1 and 0 only.",
    ),
    Case("aot", "DPO", {"beta": 0.2}, {"loss_type": ["aot"], "beta": 0.2}, difference="TRL sorts each micro-batch."),
    Case(
        "aot_unpaired",
        "DPO",
        {"beta": 0.2},
        {"loss_type": ["aot_unpaired"], "beta": 0.2},
        difference="TRL sorts each micro-batch.",
    ),
    Case("apo_zero", "DPO", {"beta": 0.2}, {"loss_type": ["apo_zero"], "beta": 0.2}),
    Case(
        "apo_zero", "KTO", {"beta": 0.2}, {"loss_type": "apo_zero_unpaired", "beta": 0.2}, factor=0.5, difference=_HALF
    ),
    Case("apo_down", "DPO", {"beta": 0.2}, {"loss_type": ["apo_down"], "beta": 0.2}),
    Case(
        "discopop",
        "DPO",
        {"beta": 0.1, "temperature": 0.2},
        {"loss_type": ["discopop"], "beta": 0.1, "discopop_tau": 0.2},
    ),
    Case("f_dpo", "DPO", {"divergence": "reverse_kl"}, {"f_divergence_type": "reverse_kl"}),
    Case("f_dpo", "DPO", {"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    Case("f_dpo", "DPO", {"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    Case(
        "f_dpo",
        "DPO",
        {"divergence": "alpha", "alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    ),
    Case("ld_dpo", "DPO", {"alpha": 0.3}, {"ld_alpha": 0.3}),
    Case(
        "wpo",
        "DPO",
        {"beta": 0.1},
        {"use_weighting": True},
        difference="TRL has no `clip_weight`; it can weight its other losses too.",
    ),
    Case(
        "kto",
        "KTO",
        {"beta": 0.2, "desirable_weight": 1.2, "undesirable_weight": 0.9},
        {"loss_type": "kto", "beta": 0.2, "desirable_weight": 1.2, "undesirable_weight": 0.9},
        difference="TRL takes a mismatched response for every row of an unpaired micro-batch, we one for every pair of "
        "the global batch; given the same ones, both have the same reference point.",
    ),
    Case("cpo", "CPO", {"beta": 0.3, "sft_weight": 0.7}, {"beta": 0.3, "cpo_alpha": 0.7}),
    Case(
        "simpo",
        "CPO",
        {"gamma_beta_ratio": 0.4, "label_smoothing": 0.1},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "label_smoothing": 0.1, "cpo_alpha": 0.0},
        difference="TRL asks for gamma, not gamma over beta.",
    ),
    Case(
        "simpo",
        "CPO",
        {"gamma_beta_ratio": 0.4, "sft_weight": 0.7},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.7},
        difference="Called CPO-SimPO.",
    ),
    Case(
        "alphapo",
        "CPO",
        {"gamma_beta_ratio": 0.4, "alpha": 0.3},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "alpha": 0.3, "cpo_alpha": 0.0},
    ),
    Case(
        "orpo",
        "ORPO",
        {"lam": 0.3},
        {"beta": 0.3},
        prompt_nll=True,
        difference="TRL's likelihood counts the prompt's tokens in, ours the response's alone; with the prompt added "
        "to ours they are equal. TRL's beta is our `lam`.",
    ),
    Case("tpo", "TPO", {"beta": 0.2, "sft_weight": 0.7}, {"loss_type": "sigmoid", "beta": 0.2, "tpo_alpha": 0.7}),
    Case(
        "tpo_l",
        "TPO",
        {"beta": 0.8, "gamma": 0.5, "sft_weight": 0.7},
        {"loss_type": "tpo-l", "beta": 0.8, "tpo_l_gamma": 0.5, "tpo_alpha": 0.7},
    ),
)

TOLERANCE: dict[TrainerName, float] = {"DPO": 1e-6, "KTO": 1e-6, "ORPO": 1e-6, "CPO": 1e-12, "TPO": 1e-12}
"""Relative, of loss and gradient. In the first three TRL takes log-probs in float32 even from a float64 model."""
