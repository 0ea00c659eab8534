"""A world of the toy reviews: a supervised policy, prompts, candidate responses with their true rewards, labels.

Everything in a world follows from its seed. Tiers are those of arXiv:2510.05342: `high` pairs two samples of the
supervised policy; `low` pairs the better of two samples with the original review; `medium` is half of each. Pairs,
labels and noise are common to everything that is compared within a world and a tier.
"""

import fcntl
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.methods import llama
from bench.methods.llama import Shape, Weights
from bench.methods.optimizer import Optimizer
from bench.methods.sampling import Samples, sample
from madpo_examples.toy_reviews.language import (
    MODIFIERS,
    PROMPT_WORDS,
    VALENCES,
    is_grammatical,
    negative_openings,
    split_review,
    true_reward,
    write_review,
)
from madpo_examples.toy_reviews.model import MAX_TOKENS, make_tokenizer

Tier = Literal["high", "medium", "low"]
RewardForm = Literal["bounded", "unbounded"]

PROMPT_TOKENS = PROMPT_WORDS + 1
"""With <bos>."""

SUPERVISED_POLICIES = 2
"""Worlds of even and of odd seed share one each."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a world."""

    hidden: int = 64
    intermediate: int = 160
    supervised_steps: int = 800
    supervised_rate: float = 3e-3
    corpus: int = 20_000
    validation_pairs: int = 256
    held_out_pairs: int = 512
    train_pairs: int = 1024
    extra_pairs: int = 3072
    """Only for reward models: together with the training pairs 4,096."""
    evaluation_prompts: int = 400
    spare: float = 1.08
    """Prompts drawn for each pair wanted: not every two samples make one."""


FULL = Size()
TINY = Size(
    hidden=16,
    intermediate=32,
    supervised_steps=80,
    supervised_rate=1e-2,
    corpus=300,
    validation_pairs=16,
    held_out_pairs=16,
    train_pairs=32,
    extra_pairs=16,
    evaluation_prompts=16,
    spare=4.0,
)
"""For tests; its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Three responses to each of N prompts: two samples of the supervised policy, and the original review."""

    rows: Tensor
    """[N, 3, T]."""
    lengths: Tensor
    """[N, 3]."""
    sums: Tensor
    """Summed valences s of the whole texts, [N, 3]; see `reward`."""
    reference_logps: Tensor
    """[N, 3]."""


@dataclass(frozen=True, slots=True)
class World:
    """What a seed gives."""

    seed: int
    size: Size
    shape: Shape
    reference: Weights
    evaluation_prompts: Tensor
    candidates: Candidates
    """Validation, held-out and training pairs, in this order."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Labelled pairs: column 0 chosen, column 1 rejected."""

    rows: Tensor
    """[N, 2, T]."""
    lengths: Tensor
    """[N, 2]."""
    reference_logps: Tensor
    """[N, 2]."""
    true_margin: Tensor
    """True reward, chosen minus rejected, [N]; negative where the noise decided."""

    def __getitem__(self, index: slice | Tensor) -> "Pairs":
        return Pairs(self.rows[index], self.lengths[index], self.reference_logps[index], self.true_margin[index])


@cache
def tokenizer():
    """Of the toy reviews, with its words by id."""
    made = make_tokenizer()
    return made, made.convert_ids_to_tokens(list(range(len(made))))


def encode(text: str) -> list[int]:
    """<bos>, the words, <eos>."""
    made, _ = tokenizer()
    return [*made(text)["input_ids"], made.eos_token_id]


def texts(rows: Tensor, lengths: Tensor) -> list[str]:
    """Words of right-padded rows, without special tokens."""
    made, words = tokenizer()
    special = set(made.all_special_ids)
    return [
        " ".join(words[token] for token in row[:length] if token not in special)
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)
    ]


def valence_sum(text: str) -> float:
    """The s of `madpo_examples.toy_reviews.language`: the true reward is 3 * tanh(s / 4)."""
    words = text.split()
    return sum(
        MODIFIERS.get(before, 1.0) * VALENCES.get(word, 0.0) for before, word in zip(["", *words], words, strict=False)
    )


def reward(sums: Tensor, form: RewardForm) -> Tensor:
    """`bounded`: the language's own, in (-3, 3), so margins stay below 6. `unbounded`: s itself."""
    return 3.0 * torch.tanh(sums / 4.0) if form == "bounded" else sums


def pad(rows: list[list[int]], length: int = MAX_TOKENS) -> tuple[Tensor, Tensor]:
    """Right-padded rows [B, length] and their lengths [B]."""
    return (
        torch.tensor([row + [0] * (length - len(row)) for row in rows]),
        torch.tensor([len(row) for row in rows]),
    )


def draw(weights: Weights, prompts: Tensor, shape: Shape, *, seed: int) -> Samples:
    """Sampled responses, cut at `MAX_TOKENS`."""
    made, _ = tokenizer()
    banned = tuple(sorted(set(made.all_special_ids) - {made.eos_token_id}))
    return sample(weights, prompts, shape, seed=seed, max_tokens=MAX_TOKENS, eos=made.eos_token_id, banned=banned)


@lru_cache(maxsize=2)
def world(seed: int, cache_directory: Path, size: Size = FULL) -> World:
    """The world of a seed; built once, then read from the cache."""
    path = cache_directory / f"world-{size.hidden}-{seed}.safetensors"
    shape = Shape.of(_config(size))
    with locked(path):
        if not path.exists():
            save_atomically(_build(seed, size, shape, cache_directory), path)
    tensors = load_file(path)
    reference = {name.removeprefix("w."): value for name, value in tensors.items() if name.startswith("w.")}
    candidates = Candidates(**{name: tensors[name] for name in Candidates.__slots__})
    return World(seed, size, shape, reference, tensors["prompts"], candidates)


@lru_cache(maxsize=2)
def extra_candidates(seed: int, cache_directory: Path, size: Size = FULL) -> Candidates:
    """More training pairs of the same world, for reward models."""
    path = cache_directory / f"extra-{size.hidden}-{seed}.safetensors"
    made = world(seed, cache_directory, size)
    with locked(path):
        if not path.exists():
            found = _candidates(made, size.extra_pairs, seed=_stream(seed, 6))
            save_atomically({name: getattr(found, name) for name in Candidates.__slots__}, path)
    return Candidates(**load_file(path))


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors so that a reader finds all of them or no file."""
    partial = path.with_suffix(f".{random.getrandbits(32)}")
    save_file(tensors, partial)
    partial.rename(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time builds a file of the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def label(candidates: Candidates, tier: Tier, form: RewardForm, *, seed: int, first: int = 0, offset: int = 0) -> Pairs:
    """Pairs of a tier with Bradley-Terry labels: P(a chosen) = sigmoid(reward(a) - reward(b)).

    Args:
        candidates: Of a world.
        tier: Which two of the three candidates meet.
        form: Of the true reward.
        seed: Of the world. The same uniform numbers decide the labels of every tier and form.
        offset: Sets streams of the same world apart.
    """
    rewards = reward(candidates.sums.double(), form)
    count = len(rewards)
    easy = {
        "high": torch.zeros(count, dtype=torch.bool),
        "medium": torch.arange(count) % 2 == 0,
        "low": torch.ones(count, dtype=torch.bool),
    }[tier]
    better = (rewards[:, 1] > rewards[:, 0]).long()
    one = torch.where(easy, better, 0)
    other = torch.where(easy, 2, 1)
    places = torch.arange(count)
    lead = rewards[places, one] - rewards[places, other]
    uniform = torch.rand(count, dtype=torch.float64, generator=_generator(seed, 5, offset))
    one_wins = uniform < lead.sigmoid()
    order = torch.stack([torch.where(one_wins, one, other), torch.where(one_wins, other, one)], 1)
    pick = places[:, None], order
    margin = rewards[pick]
    return Pairs(
        candidates.rows[pick], candidates.lengths[pick], candidates.reference_logps[pick], margin[:, 0] - margin[:, 1]
    )


def _config(size: Size) -> LlamaConfig:
    made, words = tokenizer()
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=size.hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=size.intermediate,
        max_position_embeddings=2 * MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=made.pad_token_id,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
    )


def _build(seed: int, size: Size, shape: Shape, cache_directory: Path) -> dict[str, Tensor]:
    rng = random.Random(_stream(seed, 0))
    weights = supervised(seed % SUPERVISED_POLICIES, cache_directory, size)
    prompts, _ = pad([encode(text)[:-1] for text in negative_openings(size.evaluation_prompts, rng)], PROMPT_TOKENS)
    bare = World(seed, size, shape, weights, prompts, None)  # type: ignore[arg-type]
    count = size.validation_pairs + size.held_out_pairs + size.train_pairs
    candidates = _candidates(bare, count, seed=_stream(seed, 2))
    return (
        {f"w.{name}": value for name, value in weights.items()}
        | {"prompts": prompts}
        | {name: getattr(candidates, name) for name in Candidates.__slots__}
    )


def supervised(index: int, cache_directory: Path, size: Size) -> Weights:
    """One of a few supervised policies, trained on a corpus of its own; worlds share them, as they take long."""
    path = cache_directory / f"supervised-{size.hidden}-{index}.safetensors"
    with locked(path):
        if not path.exists():
            save_atomically(_supervised(index, size), path)
    return load_file(path)


def _supervised(index: int, size: Size) -> Weights:
    config, rng = _config(size), random.Random(_stream(index, 10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(index, 1))
        model = LlamaForCausalLM(config)
    weights, shape = llama.copy(llama.from_transformers(model)), Shape.of(config)
    rows, lengths = pad([encode(write_review(rng)) for _ in range(size.corpus)])
    generator = _generator(index, 3)
    optimizer = Optimizer(weights, learning_rate=size.supervised_rate, steps=size.supervised_steps)
    for _ in range(size.supervised_steps):
        members = torch.randint(len(rows), (32,), generator=generator)
        logps = llama.grouped_response_logps(weights, rows[members], lengths[members], shape, prompt_tokens=1)
        optimizer.step(-logps.sum() / (lengths[members] - 1).sum())
    return {name: value.detach() for name, value in weights.items()}


def _candidates(made: World, count: int, *, seed: int) -> Candidates:
    """Prompts from negative reviews that are not evaluated on; pairs of equal or unfinished responses are left out."""
    rng = random.Random(seed)
    taken = set(map(tuple, made.evaluation_prompts.tolist()))
    weights, shape = made.reference, made.shape
    originals: list[list[int]] = []
    while len(originals) < int(made.size.spare * count) + 16:
        text = write_review(rng)
        row = encode(text)
        if true_reward(text) < 0 and tuple(row[:PROMPT_TOKENS]) not in taken and len(split_review(text)[1]) > 0:
            originals.append(row)
    original, original_lengths = pad(originals)

    drawn = [draw(weights, original[:, :PROMPT_TOKENS], shape, seed=seed + 1 + index) for index in range(2)]
    rows = torch.zeros(len(originals), 3, MAX_TOKENS, dtype=torch.int64)
    for column, samples in enumerate(drawn):
        rows[:, column, : samples.rows.shape[1]] = samples.rows
    rows[:, 2] = original
    lengths = torch.stack([drawn[0].lengths, drawn[1].lengths, original_lengths], 1)
    whole = drawn[0].finished & drawn[1].finished
    different = torch.stack([(rows[:, i] != rows[:, j]).any(1) for i, j in ((0, 1), (0, 2), (1, 2))]).all(0)
    kept = (whole & different).nonzero().flatten()[:count]
    if len(kept) < count:
        raise RuntimeError(f"{len(kept)} of {count} candidate pairs: the supervised policy is too weak")
    rows, lengths = rows[kept], lengths[kept]
    flat, flat_lengths = rows.flatten(0, 1), lengths.flatten()
    sums = torch.tensor([valence_sum(text) for text in texts(flat, flat_lengths)], dtype=torch.float32)
    return Candidates(rows, lengths, sums.view(-1, 3), all_logps(weights, flat, flat_lengths, shape).view(-1, 3))


@torch.no_grad()
def all_logps(weights: Weights, rows: Tensor, lengths: Tensor, shape: Shape) -> Tensor:
    """Log-probs of responses under fixed weights, [N]."""
    return llama.grouped_response_logps(weights, rows, lengths, shape, prompt_tokens=PROMPT_TOKENS, group=64)


def grammatical_share(samples: Samples) -> float:
    """Share of whole texts the language could have written; one that was cut off is none."""
    return sum(map(is_grammatical, texts(samples.rows, samples.lengths))) / len(samples.rows)


def _stream(seed: int, stream: int, offset: int = 0) -> int:
    """A seed of its own for each use of chance in a world."""
    return (seed * 64 + stream) * 64 + offset


def _generator(seed: int, stream: int, offset: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(_stream(seed, stream, offset))


noise_seed = _stream
