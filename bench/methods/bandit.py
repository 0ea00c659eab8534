"""A contextual bandit whose expected reward and KL are exact: 24 answers, contexts of 8 features, MLPs of 64 units.

A world has a hidden network that gives each answer its log-odds s of being good, a reference policy that slightly
prefers bad answers, pairs with Bradley-Terry labels, and a reward model trained on the same pairs. All worlds and
settings train at once, as one stack of small networks: nothing flows between them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def make_worlds(seeds: Sequence[int], tier: Tier, form: RewardForm) -> Worlds:
    """Draw worlds; contexts, candidates and the numbers that decide labels are common to all tiers."""
    made = [_make_world(seed, tier, form) for seed in seeds]
    return Worlds(*(torch.stack(each) for each in zip(*made, strict=True)))


def _make_world(seed: int, tier: Tier, form: RewardForm) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(10_000 + seed)
    hidden, taste = (_random_network(generator) for _ in range(2))
    evaluation = torch.randn(EVALUATION, FEATURES, generator=generator)
    contexts = torch.randn(PAIRS + VALIDATION, FEATURES, generator=generator)

    def reward(x: Tensor) -> Tensor:
        value = _standardised(_apply(hidden, x))
        return 6.0 * ((2.0 * value).sigmoid() - 0.5) if form == "bounded" else 4.0 * value

    def reference(x: Tensor) -> Tensor:
        bad = -_standardised(_apply(hidden, x))
        return (0.7 * _standardised(_apply(taste, x)) + 0.3 * bad).log_softmax(-1)

    rewards, logps = reward(contexts), reference(contexts)
    drawn = _draw(logps, 2, generator)
    original = _draw((logps - 1.0 * _standardised(_apply(hidden, contexts))).log_softmax(-1), 1, generator)
    uniform = torch.rand(len(contexts), generator=generator)
    count = torch.arange(len(contexts))
    easy = {"high": count < 0, "medium": count % 2 == 0, "low": count >= 0}[tier]
    of_drawn = rewards.gather(1, drawn)
    better = drawn.gather(1, of_drawn.argmax(1, keepdim=True))
    one = torch.where(easy[:, None], better, drawn[:, :1])
    other = torch.where(easy[:, None], original, drawn[:, 1:])
    lead = (rewards.gather(1, one) - rewards.gather(1, other))[:, 0]
    one_wins = (uniform < lead.sigmoid())[:, None]
    pairs = torch.cat([torch.where(one_wins, one, other), torch.where(one_wins, other, one)], 1)
    return reward(evaluation), reference(evaluation), evaluation, contexts, logps, pairs


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


def reward_margins(worlds: Worlds, seeds: Sequence[int], *, epochs: int = 8) -> Tensor:
    """Margins of a reward model of each world on all its pairs, [W, N]; the epoch of least validation loss."""
    generator = torch.Generator().manual_seed(20_000 + seeds[0])
    network = _new_networks(len(seeds), generator, 1)
    steps = epochs * PAIRS // BATCH
    optimizer = _Optimizer(network, learning_rate=2e-3, steps=steps)
    schedule = Schedule.plan(rows=PAIRS, batch_size=BATCH, seed=1, epochs=epochs, max_steps=None)
    best = torch.full((len(seeds),), float("inf"))
    kept = torch.zeros(worlds.pairs.shape[:2])
    for step in range(steps):
        members = torch.tensor(schedule.batch(step))
        scores = _apply(network, worlds.contexts[:, members]).gather(2, worlds.pairs[:, members])
        optimizer.step(softplus(scores[..., 1] - scores[..., 0]).mean(1).sum())
        if (step + 1) % (PAIRS // BATCH) == 0:
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
) -> tuple[Tensor, Tensor]:
    """Exact expected reward and exact KL to the reference of every setting's policy, each [settings, W]."""
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
def _evaluate(network: _Network, worlds: Worlds, settings: int) -> tuple[Tensor, Tensor]:
    rewards, divergences = [], []
    count = len(worlds.rewards)
    for index in range(settings):
        part = [value[index * count : (index + 1) * count] for value in network]
        logps = (_apply(part, worlds.evaluation) + worlds.reference).log_softmax(-1)
        probability = logps.exp()
        rewards.append((probability * worlds.rewards).sum(-1).mean(1))
        divergences.append((probability * (logps - worlds.reference)).sum(-1).mean(1))
    return torch.stack(rewards), torch.stack(divergences)


def describe(worlds: Worlds, margins: Tensor) -> dict[str, float]:
    """Figures of the reward models on their validation pairs, averaged over worlds."""
    held_out = margins[:, PAIRS:].double().numpy()
    reference_reward = (worlds.reference.exp() * worlds.rewards).sum(-1).mean()
    return {
        "accuracy": sum(map(accuracy, held_out)) / len(held_out),
        "ece": sum(map(expected_calibration_error, held_out)) / len(held_out),
        "temperature": sum(fit_temperature(each).value for each in held_out) / len(held_out),
        "beyond_tau": float((margins[:, :PAIRS].abs() > math.log(999)).float().mean()),
        "beyond_2": float((margins[:, :PAIRS].abs() > 2.0).float().mean()),
        "reference_reward": float(reference_reward),
        "true_margin_sd": float(worlds.rewards.std()),
    }
