"""Losses of all methods on the GPU against those of the CPU: values, gradients, and what methods remember."""

from dataclasses import fields, replace

import torch
from torch import Tensor

from bench.gpu_check.check import Check, Figures, Setting, relative_error, require
from madpo.losses.method import LossBatch, LossContext, Method
from madpo.losses.registry import METHODS, parse_params

_PAIRS, _LIST, _TOKENS = 16, 4, 12
_STEPS = 2
_WITH_GRADIENT = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "chosen_token_logps",
    "rejected_token_logps",
    "gold_logps",
    "list_logps",
)


def losses(setting: Setting) -> Figures:
    """Two steps of every method in float32, the second with what the first remembers."""
    expected = {name: _steps(method, torch.device("cpu")) for name, method in METHODS.items()}
    errors = {}
    for name, method in METHODS.items():
        found = _steps(method, setting.device)
        require(len(found) == len(expected[name]), f"{name} gives other gradients here", {})
        errors[name] = max(relative_error(*each) for each in zip(found, expected[name], strict=True))
    worst = max(errors, key=errors.__getitem__)
    figures = {"methods": len(errors), "worst": float(f"{errors[worst]:.2g}"), "worst_method": worst}
    require(errors[worst] <= 1e-5, f"the loss of {worst} is off", figures)
    return figures


def _steps(method: Method, device: torch.device) -> list[Tensor]:
    """Losses, gradients and state of two steps."""
    config, state, found = parse_params(method.name, {}), dict[str, Tensor](), list[Tensor]()
    requirements = method.requirements(config)
    for step in range(_STEPS):
        batch = _batch(step, device)
        stats = {}
        if requirements.global_batch:
            assert method.observe is not None, "it asks for figures of the whole batch"
            with torch.no_grad():
                stats = dict(method.observe(config, batch))
        generator = torch.Generator().manual_seed(step) if requirements.stochastic else None
        output = method.loss(config, batch, LossContext(stats=stats, state=state, generator=generator))
        total = output.total(_PAIRS)
        total.backward()  # type: ignore[no-untyped-call]
        state = state if output.state is None else dict(output.state)
        leaves = [getattr(batch, name).grad for name in _WITH_GRADIENT]
        found += [
            total.detach(),
            *(grad for grad in leaves if grad is not None),
            *(state[key] for key in sorted(state)),
        ]
    return found


def _batch(step: int, device: torch.device) -> LossBatch:
    """Every field of it, drawn on the CPU."""
    generator = torch.Generator().manual_seed(step)

    def drawn(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    token_counts = {
        side: torch.randint(2, _TOKENS + 1, (_PAIRS,), generator=generator) for side in ("chosen", "rejected")
    }
    masks = {side: torch.arange(_TOKENS) < count[:, None] for side, count in token_counts.items()}
    tokens = {side: drawn(_PAIRS, _TOKENS, low=-3, high=-0.1) * mask for side, mask in masks.items()}
    columns = {
        "reward_margin": drawn(_PAIRS, low=-2, high=4),
        "gold_logps": drawn(_PAIRS, low=-30, high=-5),
        "gold_tokens": torch.randint(3, 12, (_PAIRS,), generator=generator),
        "chosen_uncertainty": drawn(_PAIRS, low=0.1),
        "rejected_uncertainty": drawn(_PAIRS, low=0.1),
        "semantic_distance": drawn(_PAIRS, low=0),
        "mismatched_logps": drawn(_PAIRS, low=-30, high=-5),
        "list_logps": drawn(_PAIRS, _LIST, low=-20, high=-5),
        "list_scores": drawn(_PAIRS, _LIST, low=-2, high=2),
        "list_tokens": torch.randint(3, 12, (_PAIRS, _LIST), generator=generator),
        "list_mask": torch.ones(_PAIRS, _LIST, dtype=torch.bool),
    }
    columns["ref_list_logps"] = columns["list_logps"] + drawn(_PAIRS, _LIST)
    columns["ref_mismatched_logps"] = columns["mismatched_logps"] + drawn(_PAIRS)
    for side in ("chosen", "rejected"):
        reference = (tokens[side] + 0.2 * drawn(_PAIRS, _TOKENS)) * masks[side]
        columns |= {
            f"policy_{side}_logps": tokens[side].sum(dim=1),
            f"ref_{side}_logps": reference.sum(dim=1),
            f"{side}_tokens": token_counts[side],
            f"{side}_token_mask": masks[side],
            f"{side}_token_logps": tokens[side],
            f"ref_{side}_token_logps": reference,
            f"{side}_log_sum_p2": (0.8 * tokens[side] - 0.1) * masks[side],
        }
    assert columns.keys() == {field.name for field in fields(LossBatch)}
    batch = LossBatch(**{name: column.to(device) for name, column in columns.items()})
    leaves = {name: getattr(batch, name).detach().clone().requires_grad_() for name in _WITH_GRADIENT}
    return replace(batch, **leaves)


CHECKS = (Check("losses", losses, 60),)
