"""Training one policy by one method of the registry, and measuring it."""

import math
from typing import Any

import torch
from torch import Tensor

from bench.methods import llama
from bench.methods.llama import Shape, Weights
from bench.methods.optimizer import Optimizer
from bench.methods.sampling import exact_kl
from bench.methods.toy import (
    PROMPT_TOKENS,
    Pairs,
    RewardForm,
    World,
    all_logps,
    draw,
    grammatical_share,
    noise_seed,
    reward,
    texts,
    valence_sum,
)
from madpo.data.order import Schedule
from madpo.losses.method import LossBatch, LossContext, Method, MethodConfig

BATCH = 32


def pair_loss(
    method: Method,
    config: MethodConfig,
    logps: Tensor,
    reference_logps: Tensor,
    tokens: Tensor,
    margin: Tensor | None,
    state: dict[str, Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Loss of a whole batch of B pairs through the registry's contract; `state` is moved on in place.

    Args:
        method: Of the registry.
        config: Its parameters.
        logps: Of the policy, [B, 2], chosen and rejected, with gradient.
        reference_logps: [B, 2].
        tokens: Response tokens, [B, 2].
        margin: The reward model's, [B].
        state: Of a stateful method.
        generator: Of a stochastic one.
    """

    def batch(policy: Tensor) -> LossBatch:
        return LossBatch(
            policy_chosen_logps=policy[:, 0],
            policy_rejected_logps=policy[:, 1],
            ref_chosen_logps=reference_logps[:, 0],
            ref_rejected_logps=reference_logps[:, 1],
            chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
            reward_margin=margin,
        )

    stats = {}
    if method.requirements(config).global_batch:
        assert method.observe is not None
        stats = dict(method.observe(config, batch(logps.detach())))
    output = method.loss(config, batch(logps), LossContext(stats=stats, state=state, generator=generator))
    if output.state is not None:
        state.update(output.state)
    return output.total(len(logps))


class Training:
    """The optimisation of all weights of a world's supervised policy, a batch at a time."""

    def __init__(self, world: World, method: Method, config: MethodConfig, *, learning_rate: float, steps: int) -> None:
        self.weights = llama.copy(world.reference)
        self._world, self._method, self._config = world, method, config
        self._optimizer = Optimizer(self.weights, learning_rate=learning_rate, steps=steps)
        self._state: dict[str, Tensor] = {}
        self._step = 0

    def step(self, pairs: Pairs, margins: Tensor) -> bool:
        """Descend on a batch; False when its loss is not finite."""
        logps = llama.grouped_response_logps(
            self.weights,
            pairs.rows.flatten(0, 1),
            pairs.lengths.flatten(),
            self._world.shape,
            prompt_tokens=PROMPT_TOKENS,
        ).view(-1, 2)
        generator = torch.Generator().manual_seed(noise_seed(self._world.seed, 7) + (self._step << 32))
        tokens = pairs.lengths - PROMPT_TOKENS
        loss = pair_loss(
            self._method, self._config, logps, pairs.reference_logps, tokens, margins, self._state, generator
        )
        self._step += 1
        return math.isfinite(self._optimizer.step(loss))

    def policy(self) -> Weights:
        """Its weights, to be measured."""
        return {name: value.detach() for name, value in self.weights.items()}


def train(
    world: World,
    pairs: Pairs,
    margins: Tensor,
    method: Method,
    config: MethodConfig,
    *,
    learning_rate: float,
    epochs: int,
) -> Weights | None:
    """Train on given pairs; None when the loss stops being finite.

    The order of pairs depends on the world alone.
    """
    schedule = Schedule.plan(rows=len(pairs.rows), batch_size=BATCH, seed=world.seed, epochs=epochs, max_steps=None)
    training = Training(world, method, config, learning_rate=learning_rate, steps=schedule.total_steps)
    for step in range(schedule.total_steps):
        members = torch.tensor(schedule.batch(step))
        if not training.step(pairs[members], margins[members]):
            return None
    return training.policy()


def measure(weights: Weights, world: World, form: RewardForm) -> dict[str, float]:
    """True reward, exact KL and grammar of one response to each evaluation prompt."""
    samples = draw(weights, world.evaluation_prompts, world.shape, seed=noise_seed(world.seed, 8))
    sums = torch.tensor(list(map(valence_sum, texts(samples.rows, samples.lengths))), dtype=torch.float64)
    rewards = reward(sums, form)
    kl = exact_kl(weights, world.reference, samples, world.shape, prompt_tokens=PROMPT_TOKENS)
    return {
        "reward": float(rewards.mean()),
        "reward_sd": float(rewards.std()),
        "kl": float(kl.mean()),
        "kl_sd": float(kl.std()),
        "grammatical": grammatical_share(samples),
        "tokens": float((samples.lengths - PROMPT_TOKENS).float().mean()),
        "unfinished": float((~samples.finished).float().mean()),
    }


def implicit_accuracy(weights: Weights, held_out: Pairs, shape: Shape) -> dict[str, Any]:
    """How the policy's own implicit reward orders held-out pairs: as labelled, and as the true rewards do."""
    logps = all_logps(weights, held_out.rows.flatten(0, 1), held_out.lengths.flatten(), shape).view(-1, 2)
    log_ratio_diff = (logps - held_out.reference_logps) @ torch.tensor([1.0, -1.0])
    return {
        "implicit_accuracy": float((log_ratio_diff > 0).double().mean()),
        "implicit_accuracy_noiseless": noiseless_accuracy(log_ratio_diff, held_out.true_margin),
    }


def noiseless_accuracy(margins: Tensor, true_margin: Tensor) -> float:
    """Share of pairs of different true reward that are ordered as it orders them."""
    decided = true_margin != 0
    return float((margins[decided] * true_margin[decided] > 0).double().mean())
