"""REINFORCE leave-one-out (arXiv:2402.14740): the reward model's reward itself, without pairs.

The control of iterated training: it sees as many samples of the current policy and takes as many steps.
"""

import math

import torch

from bench.methods import llama
from bench.methods.llama import Weights
from bench.methods.optimizer import Optimizer
from bench.methods.policy import BATCH
from bench.methods.reward_models import Score
from bench.methods.toy import PROMPT_TOKENS, World, all_logps, draw, noise_seed
from madpo.data.order import Schedule

SAMPLES = 2
"""Of each prompt of a step: each is the other's baseline."""


def train(
    world: World, prompts: torch.Tensor, score: Score, *, beta: float, learning_rate: float, epochs: int
) -> Weights | None:
    """Fine-tune the supervised policy; None when the loss stops being finite.

    A response y is worth score(y) - beta * log(policy(y) / reference(y)), whose optimum is that of `rm_soft` at the
    same beta.

    Args:
        world: Its supervised policy is start and reference.
        prompts: [N, P], gone through once an epoch.
        score: The reward model.
        beta: Weight of the KL in the reward.
        learning_rate: As of the other arms.
        epochs: Passes over the prompts.
    """
    schedule = Schedule.plan(rows=len(prompts), batch_size=BATCH, seed=world.seed, epochs=epochs, max_steps=None)
    weights = llama.copy(world.reference)
    optimizer = Optimizer(weights, learning_rate=learning_rate, steps=schedule.total_steps)
    for step in range(schedule.total_steps):
        asked = prompts[torch.tensor(schedule.batch(step))].repeat_interleave(SAMPLES, 0)
        samples = draw(weights, asked, world.shape, seed=noise_seed(world.seed, 14) + (step << 32))
        logps = llama.grouped_response_logps(
            weights, samples.rows, samples.lengths, world.shape, prompt_tokens=PROMPT_TOKENS
        )
        reference = all_logps(world.reference, samples.rows, samples.lengths, world.shape)
        worth = score(samples.rows, samples.lengths).float() - beta * (logps.detach() - reference)
        loss = -(leave_one_out(worth.view(-1, SAMPLES)) * logps.view(-1, SAMPLES)).mean()
        if not math.isfinite(optimizer.step(loss)):
            return None
    return {name: value.detach() for name, value in weights.items()}


def leave_one_out(worth: torch.Tensor) -> torch.Tensor:
    """Each response's advantage over the mean of the others to its prompt, [B, K] of [B, K]."""
    count = worth.shape[1]
    return (worth - worth.mean(1, keepdim=True)) * count / (count - 1)
