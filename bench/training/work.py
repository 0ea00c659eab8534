"""How much there is to do, by arithmetic: tokens and FLOPs of every way to lay pairs out, no model run.

python -m bench.training.work prints the table. What a measured ratio should come near to is said here, free of noise.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.lengths import SHAPES, PairLengths, draw_lengths
from bench.models import Size

LAYOUTS = ("padded", "sorted", "padding_free", "shared")
"""Random padded batches; padded batches of pairs sorted within a step; each sequence alone; each prompt once."""

# How often a matrix product's work is done: once forward, twice backward, and once more to have logits again.
FORWARD, TRAIN, TRAIN_RECOMPUTED = 1, 3, 4
FLOP_PER_WEIGHT = 2


def layout_tokens(lengths: Sequence[PairLengths], layout: str, *, batch: int, micro_batch: int) -> int:
    """Tokens that go through the model.

    Args:
        lengths: Of the pairs, in the order of training.
        layout: One of `LAYOUTS`.
        batch: Pairs per optimizer step, the most that may be sorted.
        micro_batch: Pairs padded to one length.
    """
    if layout == "shared":
        return sum(pair.shared for pair in lengths)
    if layout == "padding_free":
        return sum(pair.shared + pair.prompt for pair in lengths)
    total = 0
    for step in _slices(lengths, batch):
        ordered = sorted(step, key=lambda pair: pair.longest) if layout == "sorted" else step
        total += sum(2 * len(part) * max(pair.longest for pair in part) for part in _slices(ordered, micro_batch))
    return total


def response_tokens(lengths: Sequence[PairLengths]) -> int:
    """Tokens that are scored."""
    return sum(pair.chosen + pair.rejected for pair in lengths)


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of a step's matrix products, and of attention beside them."""

    products: int
    attention: int

    @property
    def total(self) -> int:
        """Both."""
        return self.products + self.attention


def least_flops(lengths: Sequence[PairLengths], size: Size) -> Flops:
    """The least a training step can do without holding all logits.

    Every prompt once, the head on response tokens alone and its logits computed twice, attention only between tokens
    that see each other (with the scores computed again in the backward pass, as all fused kernels do).
    """
    blocks = TRAIN * layout_tokens(lengths, "shared", batch=1, micro_batch=1) * size.block_parameters
    head = TRAIN_RECOMPUTED * response_tokens(lengths) * size.head_parameters
    seen = sum(_seen(pair) for pair in lengths)
    # Two products forward, five backward.
    return Flops(FLOP_PER_WEIGHT * (blocks + head), 7 * FLOP_PER_WEIGHT * size.layers * size.hidden * seen)


def _seen(pair: PairLengths) -> int:
    """Pairs of tokens of which one sees the other or itself."""

    def causal(tokens: int) -> int:
        return tokens * (tokens + 1) // 2

    return causal(pair.prompt) + sum(causal(each) + each * pair.prompt for each in (pair.chosen, pair.rejected))


def ratios(lengths: Sequence[PairLengths], *, head_share: float, batch: int, micro_batch: int) -> dict[str, float]:
    """FLOPs of matrix products by layout, over those of the shared one.

    All with the head on response tokens only, its logits computed twice.

    Args:
        lengths: Of the pairs.
        head_share: Of the head in the FLOPs of one token that goes through model and head.
        batch: Pairs per optimizer step.
        micro_batch: Pairs padded to one length.
    """

    def flops(tokens: int, *, reference: bool = False) -> float:
        body, head = TRAIN + reference * FORWARD, TRAIN_RECOMPUTED + reference * FORWARD
        return body * tokens * (1 - head_share) + head * response_tokens(lengths) * head_share

    tokens: Callable[[str], int] = lambda layout: layout_tokens(lengths, layout, batch=batch, micro_batch=micro_batch)  # noqa: E731
    shared = flops(tokens("shared"))
    return {
        "padded, reference in every step": flops(tokens("padded"), reference=True) / shared,
        **{layout: flops(tokens(layout)) / shared for layout in LAYOUTS[:-1]},
    }


def table(*, pairs: int = 4096, batch: int = 64, micro_batch: int = 8, seed: int = 2) -> list[dict[str, object]]:
    """Tokens per pair and FLOP ratios for every shape of lengths, with a small and a large head."""
    rows = []
    for name, shape in SHAPES.items():
        lengths = draw_lengths(shape, pairs, seed=seed)
        tokens = {
            layout: layout_tokens(lengths, layout, batch=batch, micro_batch=micro_batch) / pairs for layout in LAYOUTS
        }
        over = {
            str(share): ratios(lengths, head_share=share, batch=batch, micro_batch=micro_batch) for share in (0.07, 0.4)
        }
        rows.append({"shape": name, "tokens_per_pair": tokens, "flop_ratio_by_head_share": over})
    return rows


def _slices(rows: Sequence[PairLengths], size: int) -> list[Sequence[PairLengths]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


if __name__ == "__main__":
    print(json.dumps(table(), indent=2))
