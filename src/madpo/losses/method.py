"""What a preference-optimisation method is. Importable without torch, so that parameters are checked anywhere.

A method is one file in this package, ending in a `Method`, and one line in `madpo.losses.registry`. Per optimizer step
the caller
    1. when `requirements(config).global_batch`, calls `observe` on every micro-batch, without gradient, and adds up
       the results over micro-batches and ranks;
    2. calls `loss` on every micro-batch with those sums, the method's state and a generator;
    3. minimises sum(mask * per_pair) / sum(mask) + sum(aux), with both sums of the first term over the global batch;
    4. keeps the returned state for the next step, and in the checkpoint.
So any split into micro-batches and ranks gives the loss of one big batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from madpo.errors import InternalError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class MethodConfig(BaseModel):
    """Base of a method's parameters: immutable, unknown names refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def extra_requirements(self) -> Mapping[str, bool]:
        """Fields of `Requirements` that only these parameter values switch on."""
        return {}


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a method needs; the caller checks it before training starts."""

    reference: bool = False
    """Log-probs under the frozen reference."""
    margin: bool = False
    """The reward model's margin of each pair."""
    lengths: bool = False
    """Response token counts."""
    token_logps: bool = False
    list: bool = False
    """Several ranked responses per prompt."""
    gold: bool = False
    """A gold response beside the pair."""
    uncertainty: bool = False
    """The reward model's uncertainty."""
    global_batch: bool = False
    """Sums over the whole global batch, from `Method.observe`."""
    stateful: bool = False
    stochastic: bool = False
    outer_loop: bool = False
    """The reference moves during training."""


@dataclass(frozen=True, slots=True)
class LossBatch:
    """One micro-batch of B pairs, every tensor [B]. Log-probs are sums over response tokens, in nats."""

    policy_chosen_logps: Tensor
    """With gradient."""
    policy_rejected_logps: Tensor
    """With gradient."""
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None
    reward_margin: Tensor | None = None
    """Chosen minus rejected reward, in reward-model logits."""

    def require(self, name: str) -> Tensor:
        """An optional input that the method declared it needs. Raises InternalError when the caller left it out."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise InternalError(f"the loss needs {name}, which its batch does not carry")
        return value

    @property
    def log_ratio_diff(self) -> Tensor:
        """Policy minus reference log-prob, chosen minus rejected."""
        chosen = self.policy_chosen_logps - self.require("ref_chosen_logps")
        return chosen - (self.policy_rejected_logps - self.require("ref_rejected_logps"))


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a loss may know beyond its micro-batch."""

    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums of `Method.observe` over the global batch; empty for methods without `global_batch`."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """State of a stateful method before this step; empty at the first."""
    generator: torch.Generator | None = None
    """The only source of chance a stochastic method may use; its state is part of the checkpoint."""
    training: bool = True


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss makes of B pairs."""

    per_pair: Tensor
    """Loss of each pair [B], its weight included; with gradient."""
    weight: Tensor
    """Multiplier of each pair's loss [B]; no gradient."""
    mask: Tensor | None = None
    """Pairs kept [B]; None keeps all."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar loss terms beside the pairs', already divided by their count in the global batch."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """The method's own figures of each pair [B], no gradient; the caller averages them over the global batch."""
    state: Mapping[str, Tensor] | None = None
    """State after the step, the same from every micro-batch; None leaves it as it was."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the registry."""

    name: str
    config: type[MethodConfig]
    requires: Requirements
    """What it needs whatever its parameters; see `requirements`."""
    summary: str
    source: str
    """Paper, with arXiv id."""
    formula: str
    loss: Callable[[Any, LossBatch, LossContext], LossOutput]
    """Called with a `config`, a micro-batch and its context."""
    observe: Callable[[Any, LossBatch], Mapping[str, Tensor]] | None = None
    """A micro-batch's contribution to the statistics of the global batch; the caller adds contributions up."""

    def requirements(self, config: MethodConfig) -> Requirements:
        """What the method needs with these parameters."""
        return replace(self.requires, **config.extra_requirements())
