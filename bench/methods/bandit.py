"""A contextual bandit whose expected reward and KL are exact: 24 answers, contexts of 8 features, MLPs of 64 units.

A world has a hidden network that gives each answer its log-odds s of being good, a reference policy that slightly
prefers bad answers, pairs with Bradley-Terry labels, and a reward model trained on the same pairs. All worlds and
settings train at once, as one stack of small networks: nothing flows between them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bench.methods.arms import ARMS
from bench.methods.optimizer import adamw, cosine
from bench.methods.policy import pair_loss
from bench.methods.toy import RewardForm, Tier
from madpo.calibration.figures import accuracy, expected_calibration_error, fit_temperature
from madpo.data.order import Schedule

ANSWERS, FEATURES, HIDDEN = 24, 8, 64
PAIRS, VALIDATION, EVALUATION = 2048, 512, 1000
BATCH = 32
_REWARD_STEPS, _REWARD_EPOCHS = 512, 2
"""A reward model takes so many steps, or so many epochs if that is more."""

_Network = list[Tensor]
"""Weights and biases of two layers, each with the worlds in front."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One training per world."""

    arm: str
    beta: float


@dataclass(frozen=True, slots=True)
class Worlds:
    """W worlds of one tier and form."""

    rewards: Tensor
    """True reward of every answer in the evaluation contexts, [W, E, A]."""
    reference: Tensor
    """Reference logits there, [W, E, A]."""
    evaluation: Tensor
    """Evaluation contexts, [W, E, F]."""
    contexts: Tensor
    """Of the pairs, [W, N, F]."""
    pair_reference: Tensor
    """Reference log-probs in these contexts, [W, N, A]."""
    pairs: Tensor
    """Chosen and rejected answer, [W, N, 2]; the last `VALIDATION` only for the reward model."""
    pair_rewards: Tensor
    """Their true rewards, [W, N, 2]."""


class Outcome(NamedTuple):
    """Of every setting's policy, each [settings, W]."""

    reward: Tensor
    """Expected, exact."""
    kl: Tensor
    """To the reference, exact."""
    implicit_accuracy: Tensor
    """How the policy's own implicit reward orders the validation pairs."""


def make_worlds(seeds: Sequence[int], tier: Tier, form: RewardForm) -> Worlds:
    """Draw worlds; contexts, candidates and the numbers that decide labels are common to all tiers."""
    made = []
    for seed in seeds:
        hidden, taste, generator = _begin(seed)
        evaluation = torch.randn(EVALUATION, FEATURES, generator=generator)
        contexts = torch.randn(PAIRS + VALIDATION, FEATURES, generator=generator)
        pairs = _draw_pairs(hidden, taste, contexts, generator, tier, form)
        made.append(
            (
                _reward(hidden, evaluation, form),
                _reference(hidden, taste, evaluation),
                evaluation,
                contexts,
                _reference(hidden, taste, contexts),
                pairs,
                _reward(hidden, contexts, form).gather(1, pairs),
            )
        )
    return Worlds(*(torch.stack(each) for each in zip(*made, strict=True)))


def more_pairs(seeds: Sequence[int], tier: Tier, form: RewardForm, count: int) -> tuple[Tensor, Tensor]:
    """Further contexts [W, count, F] and labelled pairs [W, count, 2] of the same worlds, for reward models."""
    made = []
    for seed in seeds:
        hidden, taste, _ = _begin(seed)
        generator = torch.Generator().manual_seed(40_000 + seed)
        contexts = torch.randn(count, FEATURES, generator=generator)
        made.append((contexts, _draw_pairs(hidden, taste, contexts, generator, tier, form)))
    contexts, pairs = (torch.stack(each) for each in zip(*made, strict=True))
    return contexts, pairs


def _begin(seed: int) -> tuple[_Network, _Network, torch.Generator]:
    """A world's hidden network, the reference's taste, and chance for what follows."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    return _random_network(generator), _random_network(generator), generator


def _reward(hidden: _Network, contexts: Tensor, form: RewardForm) -> Tensor:
    value = _standardised(_apply(hidden, contexts))
    return 6.0 * ((2.0 * value).sigmoid() - 0.5) if form == "bounded" else 4.0 * value


def _reference(hidden: _Network, taste: _Network, contexts: Tensor) -> Tensor:
    bad = -_standardised(_apply(hidden, contexts))
    return (0.7 * _standardised(_apply(taste, contexts)) + 0.3 * bad).log_softmax(-1)


def _draw_pairs(
    hidden: _Network, taste: _Network, contexts: Tensor, generator: torch.Generator, tier: Tier, form: RewardForm
) -> Tensor:
    """Chosen and rejected answer in each context, [N, 2]; tiers as in the toy reviews."""
    rewards, logps = _reward(hidden, contexts, form), _reference(hidden, taste, contexts)
    drawn = _draw(logps, 2, generator)
    original = _draw((logps - _standardised(_apply(hidden, contexts))).log_softmax(-1), 1, generator)
    uniform = torch.rand(len(contexts), generator=generator)
    count = torch.arange(len(contexts))
    easy = {"high": count < 0, "medium": count % 2 == 0, "low": count >= 0}[tier]
    better = drawn.gather(1, rewards.gather(1, drawn).argmax(1, keepdim=True))
    one = torch.where(easy[:, None], better, drawn[:, :1])
    other = torch.where(easy[:, None], original, drawn[:, 1:])
    lead = (rewards.gather(1, one) - rewards.gather(1, other))[:, 0]
    one_wins = (uniform < lead.sigmoid())[:, None]
    return torch.cat([torch.where(one_wins, one, other), torch.where(one_wins, other, one)], 1)


def _random_network(generator: torch.Generator) -> _Network:
    return [
        torch.randn(1, FEATURES, HIDDEN, generator=generator) / math.sqrt(FEATURES),
        0.5 * torch.randn(1, 1, HIDDEN, generator=generator),
        torch.randn(1, HIDDEN, ANSWERS, generator=generator) / math.sqrt(HIDDEN),
        torch.zeros(1, 1, ANSWERS),
    ]


def _apply(network: _Network, x: Tensor) -> Tensor:
    first, first_bias, second, second_bias = network
    outputs = torch.baddbmm(
        second_bias, torch.tanh(torch.baddbmm(first_bias, x.expand(len(first), -1, -1), first)), second
    )
    return outputs if x.dim() == 3 else outputs[0]


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()


def _draw(logps: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Different answers, [N, count]."""
    noise = torch.empty_like(logps).exponential_(generator=generator)
    return (logps - noise.log()).topk(count).indices


def _new_networks(count: int, generator: torch.Generator, repeat: int) -> _Network:
    """Outputs start at 0, so a policy starts at its reference; the same start for every setting of a world."""
    first = torch.randn(count, FEATURES, HIDDEN, generator=generator) / math.sqrt(FEATURES)
    first = first.repeat(repeat, 1, 1)
    stack = len(first)
    network = [
        first,
        torch.zeros(stack, 1, HIDDEN),
        torch.zeros(stack, HIDDEN, ANSWERS),
        torch.zeros(stack, 1, ANSWERS),
    ]
    return [value.requires_grad_() for value in network]


class _Optimizer:
    """Of a stack of networks: each network's gradient is clipped by itself."""

    def __init__(self, network: _Network, *, learning_rate: float, steps: int) -> None:
        self._network = network
        self._adam = adamw(network, learning_rate)
        self._schedule = cosine(self._adam, steps, warm_share=0.03)

    def step(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()
        norms = torch.stack([value.grad.flatten(1).norm(dim=1) for value in self._network]).norm(dim=0)
        factor = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        for value in self._network:
            value.grad.mul_(factor[:, None, None])
        self._adam.step()
        self._schedule.step()


def reward_margins(worlds: Worlds, seeds: Sequence[int], tier: Tier, form: RewardForm, name: str) -> Tensor:
    """Margins of a reward model of each world on all its pairs, [W, N].

    Args:
        worlds: Of these seeds, tier and form.
        seeds: Of the worlds.
        tier: Of the pairs.
        form: Of the true reward.
        name: `truth` for the true margins; `mlp-N` for a network trained on N pairs: the policy's own, and more of
            their kind where N is larger. It is kept where its loss on the validation pairs is least.
    """
    if name == "truth":
        return worlds.pair_rewards[..., 0] - worlds.pair_rewards[..., 1]
    count = int(name.removeprefix("mlp-"))
    contexts, pairs = worlds.contexts[:, : min(count, PAIRS)], worlds.pairs[:, : min(count, PAIRS)]
    if count > PAIRS:
        more = more_pairs(seeds, tier, form, count - PAIRS)
        contexts, pairs = torch.cat([contexts, more[0]], 1), torch.cat([pairs, more[1]], 1)
    return _train_reward_models(worlds, seeds, contexts, pairs)


def _train_reward_models(worlds: Worlds, seeds: Sequence[int], contexts: Tensor, pairs: Tensor) -> Tensor:
    network = _new_networks(len(seeds), torch.Generator().manual_seed(20_000 + seeds[0]), 1)
    steps = max(_REWARD_STEPS, _REWARD_EPOCHS * contexts.shape[1] // BATCH)
    optimizer = _Optimizer(network, learning_rate=2e-3, steps=steps)
    schedule = Schedule.plan(rows=contexts.shape[1], batch_size=BATCH, seed=1, epochs=1, max_steps=steps)
    best = torch.full((len(seeds),), float("inf"))
    kept = torch.zeros(worlds.pairs.shape[:2])
    for step in range(steps):
        members = torch.tensor(schedule.batch(step))
        scores = _apply(network, contexts[:, members]).gather(2, pairs[:, members])
        optimizer.step(softplus(scores[..., 1] - scores[..., 0]).mean(1).sum())
        if (step + 1) % 64 == 0:
            with torch.no_grad():
                scores = _apply(network, worlds.contexts).gather(2, worlds.pairs)
            margin = scores[..., 0] - scores[..., 1]
            loss = softplus(-margin[:, PAIRS:]).mean(1)
            better = loss < best
            best[better], kept[better] = loss[better], margin[better]
    return kept


def train_all(
    worlds: Worlds,
    seeds: Sequence[int],
    margins: Tensor,
    settings: Sequence[Setting],
    *,
    learning_rate: float,
    steps: int,
) -> Outcome:
    """Train every setting's policy in every world."""
    count = len(seeds)
    network = _new_networks(count, torch.Generator().manual_seed(30_000 + seeds[0]), len(settings))
    optimizer = _Optimizer(network, learning_rate=learning_rate, steps=steps)
    schedule = Schedule.plan(rows=PAIRS, batch_size=BATCH, seed=2, epochs=1, max_steps=steps)
    losses = [_losses(setting, count) for setting in settings]
    for step in range(steps):
        members = torch.tensor(schedule.batch(step))
        pairs, reference = worlds.pairs[:, members], worlds.pair_reference[:, members]
        outputs = _apply(network, worlds.contexts[:, members].repeat(len(settings), 1, 1))
        logps = (outputs.view(len(settings), count, BATCH, ANSWERS) + reference).log_softmax(-1)
        logps = logps.gather(3, pairs.expand(len(settings), -1, -1, -1))
        own_reference = reference.gather(2, pairs)
        total = sum(loss(logps[index], own_reference, margins[:, members], step) for index, loss in enumerate(losses))
        assert isinstance(total, Tensor)
        optimizer.step(total)
    return _evaluate(network, worlds, len(settings))


def _losses(setting: Setting, count: int):
    """The summed loss of W worlds, each with its own batch, state and chance."""
    method, config = ARMS[setting.arm].at(setting.beta)
    states: list[dict[str, Tensor]] = [{} for _ in range(count)]
    requirements = method.requirements(config)
    together = not (requirements.global_batch or requirements.stateful or requirements.stochastic)

    def loss(logps: Tensor, reference: Tensor, margin: Tensor, step: int) -> Tensor:
        generator = torch.Generator()
        if together:
            ones = torch.ones(logps.shape[:2].numel(), 2)
            flat = logps.flatten(0, 1), reference.flatten(0, 1), ones, margin.flatten()
            return count * pair_loss(method, config, *flat, {}, generator)
        ones = torch.ones(BATCH, 2)
        parts = []
        for place, state in enumerate(states):
            generator.manual_seed(step)
            parts.append(
                pair_loss(method, config, logps[place], reference[place], ones, margin[place], state, generator)
            )
        return torch.stack(parts).sum()

    return loss


@torch.no_grad()
def _evaluate(network: _Network, worlds: Worlds, settings: int) -> Outcome:
    count = len(worlds.rewards)
    held_out = worlds.contexts[:, PAIRS:], worlds.pairs[:, PAIRS:]
    parts = []
    for index in range(settings):
        part = [value[index * count : (index + 1) * count] for value in network]
        logps = (_apply(part, worlds.evaluation) + worlds.reference).log_softmax(-1)
        probability = logps.exp()
        # The log-partition cancels between the two answers of a pair, so the outputs alone order it.
        chosen, rejected = _apply(part, held_out[0]).gather(2, held_out[1]).unbind(-1)
        parts.append(
            (
                (probability * worlds.rewards).sum(-1).mean(1),
                (probability * (logps - worlds.reference)).sum(-1).mean(1),
                (chosen > rejected).float().mean(1),
            )
        )
    return Outcome(*map(torch.stack, zip(*parts, strict=True)))


def describe(worlds: Worlds, margins: Tensor) -> dict[str, float]:
    """Figures of the reward models on their validation pairs, averaged over worlds."""
    held_out = margins[:, PAIRS:].double().numpy()
    true_margin = worlds.pair_rewards[:, PAIRS:, 0] - worlds.pair_rewards[:, PAIRS:, 1]
    reference_reward = (worlds.reference.exp() * worlds.rewards).sum(-1).mean()
    return {
        "accuracy": sum(map(accuracy, held_out)) / len(held_out),
        "noiseless_accuracy": float((margins[:, PAIRS:] * true_margin > 0).float().mean()),
        "contradicted": float((margins[:, :PAIRS] < 0).float().mean()),
        "ece": sum(map(expected_calibration_error, held_out)) / len(held_out),
        "temperature": sum(fit_temperature(each).value for each in held_out) / len(held_out),
        "beyond_tau": float((margins[:, :PAIRS].abs() > math.log(999)).float().mean()),
        "beyond_2": float((margins[:, :PAIRS].abs() > 2.0).float().mean()),
        "reference_reward": float(reference_reward),
        "true_margin_sd": float(worlds.rewards.std()),
    }
