"""Reward models of a world: from good to poor, and what the calibration report says of each.

`words` is a Bradley-Terry model of word counts, linear: the right inductive bias, since the true reward nearly is one.
`llama-N` is the supervised policy's body with a score on its last token, as the reward service uses, on N pairs.
"""

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
    """Reward margins of a reward model on the training pairs [N] and the held-out pairs [M]; trained once."""
    path = cache_directory / f"margins-{size.hidden}-{seed}-{tier}-{form}-{name}.safetensors"
    with locked(path):
        if not path.exists():
            made = world(seed, cache_directory, size)
            validation, held_out, training = split(made, tier, form)
            if name == "words":
                score = _fit_words(training, validation)
            else:
                wanted = int(name.removeprefix("llama-"))
                pairs = training[:wanted]
                if wanted > len(training.rows):
                    more = extra_candidates(seed, cache_directory, size)
                    pairs = _joined(training, _label_extra(more, tier, form, seed))[:wanted]
                score = _train_llama(made, pairs, validation)
            save_atomically({"training": score(training), "held_out": score(held_out)}, path)
    tensors = load_file(path)
    return tensors["training"], tensors["held_out"]


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


def _joined(one: Pairs, other: Pairs) -> Pairs:
    return Pairs(*(torch.cat([getattr(one, name), getattr(other, name)]) for name in Pairs.__slots__))


def _word_counts(pairs: Pairs) -> Tensor:
    """Chosen minus rejected counts of each token, [N, V]."""
    _, words = tokenizer()
    inside = torch.arange(pairs.rows.shape[-1]) < pairs.lengths[..., None]
    counts = (one_hot(pairs.rows, len(words)) * inside[..., None]).sum(-2).double()
    return counts[:, 0] - counts[:, 1]


def _fit_words(training: Pairs, validation: Pairs):
    """Ridge-penalised Bradley-Terry by Newton's method; the ridge is the one of least loss on the validation pairs."""
    features, held = _word_counts(training), _word_counts(validation)
    fits = [_newton(features, ridge) for ridge in _RIDGES]
    best = min(fits, key=lambda fit: float(softplus(-(held @ fit)).mean()))
    return lambda pairs: (_word_counts(pairs) @ best).float()


def _newton(features: Tensor, ridge: float) -> Tensor:
    weights = features.new_zeros(features.shape[1])
    eye = ridge * torch.eye(len(weights), dtype=features.dtype)
    for _ in range(12):
        probability = (features @ weights).sigmoid()
        gradient = features.T @ (probability - 1) + ridge * weights
        hessian = (features * (probability * (1 - probability))[:, None]).T @ features + eye
        weights = weights - torch.linalg.solve(hessian, gradient)
    return weights


def _train_llama(made: World, pairs: Pairs, validation: Pairs):
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

    def score(others: Pairs) -> Tensor:
        with torch.no_grad():
            return _llama_margins(kept, others, made.shape)

    return score


def _llama_margins(weights: Weights, pairs: Pairs, shape: Shape, *, group: int = 64) -> Tensor:
    rows, lengths = pairs.rows.flatten(0, 1), pairs.lengths.flatten()
    order = lengths.argsort(stable=True)
    scores = []
    for members in order.split(group):
        ends = lengths[members]
        hidden = llama.hidden_states(weights, rows[members, : int(ends.max())], shape)
        scores.append(hidden[torch.arange(len(ends)), ends - 1] @ (weights["norm"] * weights["score"]))
    chosen, rejected = torch.cat(scores)[order.argsort()].view(-1, 2).unbind(1)
    return chosen - rejected
