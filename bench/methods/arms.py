"""What is compared: methods of the registry with their parameters, named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from madpo.losses.method import Method, MethodConfig
from madpo.losses.registry import get_method, parse_params

Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """A method at one setting of everything but beta."""

    method: str
    params: Callable[[float], Params]
    """Given beta; SimPO and alpha-DPO keep their own."""

    def at(self, beta: float) -> tuple[Method, MethodConfig]:
        """The method and its checked parameters."""
        return get_method(self.method), parse_params(self.method, self.params(beta))


def _posterior(label_weight: float, **more: float) -> Arm:
    return Arm("madpo_posterior", lambda beta: {"beta": beta, "label_weight": label_weight, **more})


ARMS: Mapping[str, Arm] = {
    "dpo": Arm("dpo", lambda beta: {"beta": beta}),
    "ipo": Arm("ipo", lambda beta: {"beta": beta, "average_log_prob": False}),
    # The MADPO paper's own re-implementation, since its table stands beside ours.
    "beta_dpo": Arm(
        "beta_dpo",
        lambda beta: {
            "beta": beta,
            "gap_scale": "reward",
            "beta_from": "all",
            "min_beta": None,
            "initial_std": 1.0,
            "bias_correction": False,
        },
    ),
    "beta_dpo_authors": Arm("beta_dpo", lambda beta: {"beta": beta}),
    "simpo": Arm("simpo", lambda beta: {}),
    "alpha_dpo": Arm("alpha_dpo", lambda beta: {}),
    "adpo": Arm("adpo", lambda beta: {"tau": 1 / beta}),
    "madpo": Arm("madpo", lambda beta: {"beta": beta}),
    "rm_soft": Arm("rm_soft", lambda beta: {"beta": beta}),
    "posterior_0": _posterior(0.0),
    "posterior_0.25": _posterior(0.25),
    "posterior_0.5": _posterior(0.5),
    # Weights of 1: what is left of posterior MADPO without MADPO.
    "label_mix_0.25": _posterior(0.25, c_max=1.0),
    # The turning point where margins are: the paper's class default, and its c_max of the headline numbers.
    "madpo_tau2": Arm("madpo", lambda beta: {"beta": beta, "tau": 2.0}),
    "madpo_c4": Arm("madpo", lambda beta: {"beta": beta, "c_max": 4.0, "c_min": 0.25}),
}
