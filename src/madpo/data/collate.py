"""Token ids to padded tensors. Rows are padded on the right, so a row's length is the sum of its mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from madpo.data.loss_mask import counted_places
from madpo.data.tokenize import Encoded


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """Rows of prompt and response, all [B, T]."""

    input_ids: Tensor
    """int64."""
    attention_mask: Tensor
    """int64, 1 on tokens."""
    response_mask: Tensor
    """bool, True on the response's tokens that count."""

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return type(self)(
            *(
                tensor.to(device, non_blocking=True)
                for tensor in (self.input_ids, self.attention_mask, self.response_mask)
            )
        )


@dataclass(frozen=True, slots=True)
class PairBatch(ResponseBatch):
    """Pairs as 2B rows: all chosen responses, then all rejected ones in the same order."""

    @property
    def size(self) -> int:
        """Number of pairs, B."""
        return len(self.input_ids) // 2


def collate_pairs(pairs: Sequence[tuple[Encoded, Encoded]], *, pad_id: int) -> PairBatch:
    """Pad (chosen, rejected) tuples to the longest of all rows."""
    chosen, rejected = zip(*pairs, strict=True)
    return PairBatch(*_pad([*chosen, *rejected], pad_id=pad_id))


def collate_responses(responses: Sequence[Encoded], *, pad_id: int) -> ResponseBatch:
    """Pad single responses to the longest row."""
    return ResponseBatch(*_pad(responses, pad_id=pad_id))


def _pad(rows: Sequence[Encoded], *, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (len(rows), max(map(len, rows)))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        attention_mask[index, : len(row)] = 1
        counted = torch.tensor(counted_places(row.mask, len(row.response_ids)), dtype=torch.int64)
        response_mask[index, len(row.prompt_ids) + counted] = True
    return input_ids, attention_mask, response_mask
