"""Reward models of a world: from good to poor, and what the calibration report says of each.

`words` is a Bradley-Terry model of word counts, linear: the right inductive bias, since the true reward nearly is one.
`llama-N` is the supervised policy's body with a score on its last token, as the reward service uses, on N pairs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from bench.methods import llama
from bench.methods.llama import Shape, Weights
from bench.methods.optimizer import Optimizer
from bench.methods.policy import noiseless_accuracy
from bench.methods.toy import (
    FULL,
    Candidates,
    Pairs,
    RewardForm,
    Size,
    Tier,
    World,
    extra_candidates,
    label,
    locked,
    noise_seed,
    save_atomically,
    tokenizer,
    world,
)
from madpo.calibration.measure import measure
from madpo.data.order import Schedule
from madpo.losses.registry import get_method, parse_params

Score = Callable[[Tensor, Tensor], Tensor]
"""Rewards [B] of right-padded rows [B, T] of so many tokens, [B]."""

_RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0)
_EPOCHS = {256: 8, 1024: 4, 4096: 2}
"""By number of pairs: enough to overfit the few, so that the validation pairs choose where to stop."""
_LEARNING_RATE = 1e-3
_BATCH = 32


def split(made: World, tier: Tier, form: RewardForm) -> tuple[Pairs, Pairs, Pairs]:
    """Validation, held-out and training pairs of a tier."""
    pairs = label(made.candidates, tier, form, seed=made.seed)
    first = made.size.validation_pairs
    second = first + made.size.held_out_pairs
    return pairs[:first], pairs[first:second], pairs[second:]


def margins(
    seed: int, tier: Tier, form: RewardForm, name: str, *, cache_directory: Path, size: Size = FULL
) -> tuple[Tensor, Tensor]:
    """Reward margins of a reward model on the training pairs [N] and the held-out pairs [M]; made once."""
    path = cache_directory / f"margins-{size.hidden}-{seed}-{tier}-{form}-{name}.safetensors"
    with locked(path):
        if not path.exists():
            score = scorer(seed, tier, form, name, cache_directory=cache_directory, size=size)
            _, held_out, training = split(world(seed, cache_directory, size), tier, form)
            save_atomically({"training": _margins(score, training), "held_out": _margins(score, held_out)}, path)
    tensors = load_file(path)
    return tensors["training"], tensors["held_out"]


def scorer(seed: int, tier: Tier, form: RewardForm, name: str, *, cache_directory: Path, size: Size = FULL) -> Score:
    """A reward model; trained once. `words-N` and `llama-N` see N pairs, `words` all training pairs."""
    path = cache_directory / f"reward-model-{size.hidden}-{seed}-{tier}-{form}-{name}.safetensors"
    made = world(seed, cache_directory, size)
    kind, _, wanted = name.partition("-")
    with locked(path):
        if not path.exists():
            validation, _, training = split(made, tier, form)
            pairs = training[: int(wanted)] if wanted else training
            if wanted and int(wanted) > len(training.rows):
                more = extra_candidates(seed, cache_directory, size)
                pairs = joined(training, _label_extra(more, tier, form, seed))[: int(wanted)]
            if kind == "words":
                weights = {"words": fit_words(pairs, validation)}
            else:
                weights = _train_llama(made, pairs, validation)
            save_atomically(weights, path)
    weights = load_file(path)
    return words_score(weights["words"]) if kind == "words" else partial(_llama_scores, weights, made.shape)


def _margins(score: Score, pairs: Pairs) -> Tensor:
    chosen, rejected = score(pairs.rows.flatten(0, 1), pairs.lengths.flatten()).view(-1, 2).unbind(1)
    return (chosen - rejected).float()


def describe(
    seed: int, tier: Tier, form: RewardForm, name: str, *, cache_directory: Path, size: Size = FULL
) -> dict[str, Any]:
    """The calibration report's figures, which users have, and the truth, which they have not."""
    made = world(seed, cache_directory, size)
    _, held_out, training = split(made, tier, form)
    on_training, on_held_out = margins(seed, tier, form, name, cache_directory=cache_directory, size=size)
    report = measure(
        get_method("madpo"),
        parse_params("madpo", {}),
        temperature=1.0,
        held_out=on_held_out.numpy(),
        training=on_training.numpy(),
    )
    assert report.held_out is not None
    absolute = on_training.abs()
    return {
        "accuracy": report.held_out.accuracy,
        "ece": report.held_out.ece,
        "temperature": report.held_out.temperature,
        "loss": report.held_out.loss,
        "contradicted": report.margins.contradicted_ratio,
        "mean_weight": report.weights.mean,
        "beyond_tau": float((absolute > report.params["tau"]).float().mean()),
        "beyond_2": float((absolute > 2.0).float().mean()),
        "largest_margin": float(absolute.max()),
        "margin_sd": float(on_training.std()),
        "warnings": list(report.warnings),
        "noiseless_accuracy": noiseless_accuracy(on_held_out, held_out.true_margin),
        "correlation": _correlation(on_held_out.double(), held_out.true_margin.double()),
        "flipped_labels": float((training.true_margin < 0).float().mean()),
        "true_margin_sd": float(training.true_margin.std()),
    }


def _correlation(margins: Tensor, true_margin: Tensor) -> float:
    """About 0, not about the means: which response is called chosen makes no difference."""
    return float((margins @ true_margin) / (margins.norm() * true_margin.norm()))


def _label_extra(more: Candidates, tier: Tier, form: RewardForm, seed: int) -> Pairs:
    return label(more, tier, form, seed=seed, offset=1)


def joined(one: Pairs, other: Pairs) -> Pairs:
    """Pairs of both."""
    return Pairs(*(torch.cat([getattr(one, name), getattr(other, name)]) for name in Pairs.__slots__))


def _word_counts(rows: Tensor, lengths: Tensor) -> Tensor:
    """Counts of each token in each row, [B, V]."""
    _, words = tokenizer()
    inside = torch.arange(rows.shape[-1]) < lengths[:, None]
    return (one_hot(rows, len(words)) * inside[..., None]).sum(-2).double()


def words_score(fit: Tensor) -> Score:
    """The reward model of a weight for each word, [V]."""
    return lambda rows, lengths: _word_counts(rows, lengths) @ fit


def fit_words(training: Pairs, validation: Pairs) -> Tensor:
    """Ridge-penalised Bradley-Terry by Newton's method; the ridge is the one of least loss on the validation pairs."""

    def features(pairs: Pairs) -> Tensor:
        counts = _word_counts(pairs.rows.flatten(0, 1), pairs.lengths.flatten())
        return counts[0::2] - counts[1::2]

    held = features(validation)
    fits = [_newton(features(training), ridge) for ridge in _RIDGES]
    return min(fits, key=lambda fit: float(softplus(-(held @ fit)).mean()))


def _newton(features: Tensor, ridge: float) -> Tensor:
    weights = features.new_zeros(features.shape[1])
    eye = ridge * torch.eye(len(weights), dtype=features.dtype)
    for _ in range(12):
        probability = (features @ weights).sigmoid()
        gradient = features.T @ (probability - 1) + ridge * weights
        hessian = (features * (probability * (1 - probability))[:, None]).T @ features + eye
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights


def _train_llama(made: World, pairs: Pairs, validation: Pairs) -> Weights:
    """AdamW; the weights of the epoch with the least loss on the validation pairs."""
    weights = llama.copy(made.reference)
    weights["score"] = torch.zeros_like(made.reference["norm"]).requires_grad_()
    epochs = _EPOCHS.get(len(pairs.rows), 4)
    schedule = Schedule.plan(
        rows=len(pairs.rows), batch_size=_BATCH, seed=noise_seed(made.seed, 9), epochs=epochs, max_steps=None
    )
    optimizer = Optimizer(weights, learning_rate=_LEARNING_RATE, steps=schedule.total_steps)
    epoch_steps = max(1, len(pairs.rows) // _BATCH)
    best, kept = float("inf"), {}
    for step in range(schedule.total_steps):
        margin = _llama_margins(weights, pairs[torch.tensor(schedule.batch(step))], made.shape, group=16)
        optimizer.step(softplus(-margin).mean())
        if (step + 1) % epoch_steps == 0 or step + 1 == schedule.total_steps:
            with torch.no_grad():
                loss = float(softplus(-_llama_margins(weights, validation, made.shape)).mean())
            if loss < best:
                best, kept = loss, {name: value.detach().clone() for name, value in weights.items()}
    return kept


def _llama_margins(weights: Weights, pairs: Pairs, shape: Shape, *, group: int = 64) -> Tensor:
    scores = _grouped_scores(weights, shape, pairs.rows.flatten(0, 1), pairs.lengths.flatten(), group)
    chosen, rejected = scores.view(-1, 2).unbind(1)
    return chosen - rejected


@torch.no_grad()
def _llama_scores(weights: Weights, shape: Shape, rows: Tensor, lengths: Tensor) -> Tensor:
    return _grouped_scores(weights, shape, rows, lengths, 64)


def _grouped_scores(weights: Weights, shape: Shape, rows: Tensor, lengths: Tensor, group: int) -> Tensor:
    order = lengths.argsort(stable=True)
    scores = []
    for members in order.split(group):
        ends = lengths[members]
        hidden = llama.hidden_states(weights, rows[members, : int(ends.max())], shape)
        scores.append(hidden[torch.arange(len(ends)), ends - 1] @ (weights["norm"] * weights["score"]))
    return torch.cat(scores)[order.argsort()]
