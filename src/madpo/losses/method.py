"""What a preference-optimisation method is. Importable without torch, so that parameters are checked anywhere.

A method is one file in this package, ending in a `Method`, which `madpo.losses.registry` finds. Per optimizer step the
caller
    1. when `requirements(config).global_batch`, calls `observe` on every micro-batch, without gradient or dropout, and
       gathers the figures of all N pairs of the global batch, from all micro-batches and ranks, in the batch's order;
    2. calls `loss` on every micro-batch with those figures, the method's state, and a generator that starts each call
       of the step in the same state, a function of seed and step;
    3. minimises, summed over all micro-batches, sum(mask * per_pair) / kept + sum(aux);
    4. keeps the returned state for the next step, and in the checkpoint.
Whatever a loss computes from figures, state and generator comes out equal in every call of a step, so any split into
micro-batches and ranks gives the loss of one big batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict

from madpo.errors import InternalError
from madpo.losses.scales import MarginScale
from madpo.types import MOST_STEPS, AtMost

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Evidence = Literal["code", "paper", "secondary", "rebuilt", "own"]


Coefficient = Annotated[float, AtMost(1_000)]
"""A weight or a scale; more than that of any would drown all else."""
Steps = Annotated[int, AtMost(MOST_STEPS)]
"""Optimizer steps."""


class MethodConfig(BaseModel):
    """Base of a method's parameters: immutable, unknown names refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def extra_requirements(self) -> Mapping[str, bool]:
        """Fields of `Requirements` that only these parameter values switch on, or off."""
        return {}

    def reward_scale(self) -> float:
        """Implicit reward per nat of log-ratio."""
        return float(getattr(self, "beta", 1.0))

    def margin_scales(self) -> Mapping[str, MarginScale]:
        """Parameters in units of the reward margin, by name; those that are rules are not numbers yet."""
        return {}

    def reference_update(self) -> ReferenceUpdate | None:
        """How the reference moves during training; None keeps it fixed."""
        return None

    def adapter_conflict(self, *, quantized: bool = False) -> str:
        """Why low-rank adapters cannot be trained with these values, and what to do; "" where they can.

        Args:
            quantized: Their base is in four bits.
        """
        update = self.reference_update()
        if quantized and update is not None:
            return "mixes weights into a reference, which a base in four bits cannot follow: leave quantize_base out"
        if update is None or not update.extrapolation:
            return ""
        return (
            "moves the policy itself on, which low-rank adapters cannot follow: leave lora out, or set "
            "method.params.alpha to 0"
        )


@dataclass(frozen=True, slots=True)
class ReferenceUpdate:
    """After every `every` steps: reference <- rate * policy + (1 - rate) * reference."""

    every: int
    rate: float
    """1 copies the policy."""
    extrapolation: float = 0.0
    """At an update the policy first moves on to policy + extrapolation * (policy - policy at the last update)."""
    kl_threshold: float | None = None
    """Update only when the step's mean policy-to-reference log-ratio of the responses is above it, in nats."""


def _flag(what: str, provide: str = "") -> Any:
    return field(default=False, metadata={"what": what, "provide": provide})


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a method needs; the caller checks it before training starts. See `describe_requirement`."""

    reference: bool = _flag("log-probs under the reference policy")
    margin: bool = _flag(
        "the reward model's margin of each pair",
        "give margin.reward_model, or margin.source=dataset with a dataset that has a column margin",
    )
    lengths: bool = _flag("response token counts")
    token_logps: bool = _flag("log-probs of single tokens")
    vocabulary: bool = _flag("the policy's whole next-token distributions")
    list: bool = _flag(
        "several scored responses per prompt", "upload a dataset of lists, with columns responses and scores"
    )
    gold: bool = _flag("a gold response beside each pair", "add a column gold to the dataset")
    uncertainty: bool = _flag(
        "the reward model's uncertainty of both responses",
        "add columns chosen_uncertainty and rejected_uncertainty to the dataset",
    )
    semantic_distance: bool = _flag(
        "the distance between prompt and chosen response", "add a column semantic_distance to the dataset"
    )
    mismatched: bool = _flag(
        "log-probs of responses under the prompts of other pairs, which cost two more forward passes",
        "train on at least 2 rows, with training.global_batch_size of at least 2",
    )
    global_batch: bool = _flag("figures of the whole global batch, from Method.observe")
    policy_figures: bool = _flag("such figures from the policy's log-probs, which cost a second forward pass")
    stateful: bool = _flag("running statistics kept from step to step")
    stochastic: bool = _flag("a random generator")
    outer_loop: bool = _flag("a reference that moves during training, a second model that is run at every step")


def describe_requirement(name: str) -> tuple[str, str]:
    """What a flag of `Requirements` stands for, and how a user provides it; "" where users have no part in it."""
    (flag,) = (flag for flag in fields(Requirements) if flag.name == name)
    return flag.metadata["what"], flag.metadata["provide"]


_WITH_GRADIENT = frozenset({"chosen_token_logps", "rejected_token_logps", "gold_logps", "list_logps"})


@dataclass(frozen=True, slots=True)
class LossBatch:
    """One micro-batch of B pairs. Log-probs are sums over response tokens, in nats; every tensor [B] unless noted.

    T is the number of tokens of the longest response, K of the longest list; masks are boolean.
    """

    policy_chosen_logps: Tensor
    """With gradient. In `observe` without `policy_figures` it is NaN, as is all of the policy's but
    `mismatched_logps`."""
    policy_rejected_logps: Tensor
    """With gradient."""
    ref_chosen_logps: Tensor | None = None
    ref_rejected_logps: Tensor | None = None
    chosen_tokens: Tensor | None = None
    """Response tokens, at least 1."""
    rejected_tokens: Tensor | None = None
    reward_margin: Tensor | None = None
    """Chosen minus rejected reward, in reward-model logits."""

    chosen_token_logps: Tensor | None = None
    """[B, T], with gradient; right-padded."""
    rejected_token_logps: Tensor | None = None
    """[B, T], with gradient."""
    ref_chosen_token_logps: Tensor | None = None
    """[B, T]."""
    ref_rejected_token_logps: Tensor | None = None
    """[B, T]."""
    chosen_token_mask: Tensor | None = None
    """[B, T], True on response tokens."""
    rejected_token_mask: Tensor | None = None
    """[B, T]."""
    chosen_log_sum_p2: Tensor | None = None
    """[B, T], log of the sum over the vocabulary of squared probabilities, at each response token; no gradient."""
    rejected_log_sum_p2: Tensor | None = None
    """[B, T]."""

    gold_logps: Tensor | None = None
    """Of the gold response, with gradient."""
    gold_tokens: Tensor | None = None
    chosen_uncertainty: Tensor | None = None
    """Standard deviation of the chosen reward, in reward-model logits, >= 0."""
    rejected_uncertainty: Tensor | None = None
    semantic_distance: Tensor | None = None
    """1 - cosine similarity, in [0, 2]."""
    mismatched_logps: Tensor | None = None
    """Of another pair's chosen response under this pair's prompt, by the policy; no gradient. In `observe` alone."""
    ref_mismatched_logps: Tensor | None = None

    list_logps: Tensor | None = None
    """[B, K], with gradient."""
    ref_list_logps: Tensor | None = None
    """[B, K]."""
    list_tokens: Tensor | None = None
    """[B, K]."""
    list_scores: Tensor | None = None
    """[B, K], higher is better."""
    list_mask: Tensor | None = None
    """[B, K], True on responses; a list has at least two."""

    def require(self, name: str) -> Tensor:
        """An optional input that the method declared it needs, without gradient unless its field says it has one.

        Raises InternalError when the caller left it out.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise InternalError(f"the loss needs {name}, which its batch does not carry")
        return value if name in _WITH_GRADIENT else value.detach()

    @property
    def chosen_log_ratio(self) -> Tensor:
        """Policy minus reference log-prob of the chosen response."""
        return self.policy_chosen_logps - self.require("ref_chosen_logps")

    @property
    def rejected_log_ratio(self) -> Tensor:
        """Policy minus reference log-prob of the rejected response."""
        return self.policy_rejected_logps - self.require("ref_rejected_logps")

    @property
    def log_ratio_diff(self) -> Tensor:
        """Chosen minus rejected log-ratio."""
        return self.chosen_log_ratio - self.rejected_log_ratio


@dataclass(frozen=True, slots=True)
class LossContext:
    """What a loss may know beyond its micro-batch."""

    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Figures of `Method.observe` for all N pairs of the global batch, each [N]; empty without `global_batch`."""
    rows: Tensor | None = None
    """Place of each pair of the micro-batch in the global batch, int64 [B]; None: the micro-batch is all of it."""
    pairs: int | None = None
    """N; None: the micro-batch is all of it."""
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """State of a stateful method before this step; empty at the first."""
    generator: torch.Generator | None = None
    """The only source of chance a stochastic method may use; on the CPU."""
    training: bool = True
    """State moves only in training."""

    def own(self, values: Tensor) -> Tensor:
        """The micro-batch's entries of figures [N] of the global batch."""
        return values if self.rows is None else values[self.rows]

    def pair_count(self, batch: LossBatch) -> int:
        """N, pairs of the global batch."""
        return len(batch.policy_chosen_logps) if self.pairs is None else self.pairs


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss makes of B pairs (or lists)."""

    per_pair: Tensor
    """Loss of each pair [B], its weight included; with gradient."""
    weight: Tensor
    """Multiplier of each pair's loss [B]; no gradient."""
    mask: Tensor | None = None
    """Pairs kept [B], boolean; None keeps all."""
    kept: Tensor | int | None = None
    """Pairs kept in the global batch; comes with `mask`."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalar loss terms beside the pairs', already divided by their count in the global batch; with gradient."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """The method's own figures of each pair [B], no gradient; the caller averages them over the global batch."""
    state: Mapping[str, Tensor] | None = None
    """State after the step, the same from every micro-batch; None leaves it as it was."""

    def total(self, pairs: int) -> Tensor:
        """The micro-batch's share of the objective, given the number of pairs of the global batch."""
        if self.mask is None:
            total = self.per_pair.sum() / pairs
        else:
            assert self.kept is not None
            total = (self.per_pair * self.mask).sum() / self.kept
        for term in self.aux.values():
            total = total + term
        return total


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the registry."""

    name: str
    config: type[MethodConfig]
    requires: Requirements
    """What it needs whatever its parameters; see `requirements`."""
    summary: str
    source: str
    """Paper, with arXiv id; "own" for ours."""
    formula: str
    loss: Callable[[Any, LossBatch, LossContext], LossOutput]
    """Called with a `config`, a micro-batch and its context."""
    observe: Callable[[Any, LossBatch], Mapping[str, Tensor]] | None = None
    """Figures of each pair of a micro-batch, [B] each and no gradient; the caller gathers them."""
    evidence: Evidence = "code"
    """How well the formula is known; see `EVIDENCE`."""

    def requirements(self, config: MethodConfig) -> Requirements:
        """What the method needs with these parameters."""
        requirements = replace(self.requires, **config.extra_requirements())
        return replace(requirements, outer_loop=True) if config.reference_update() is not None else requirements


EVIDENCE: Mapping[Evidence, str] = {
    "code": "the formula agrees with published code",
    "paper": "the formula is the published one; no code was compared",
    "secondary": "the formula was taken from descriptions of the paper; defaults may differ from it",
    "rebuilt": "only the idea is published where we could read it; the formula is our reconstruction",
    "own": "our own method; there is no paper",
}


def requirement_names(requirements: Requirements) -> tuple[str, ...]:
    """The flags that are set, in the order of their declaration."""
    return tuple(flag.name for flag in fields(requirements) if getattr(requirements, flag.name))
