"""Reference log-probs: computed once per (model, data, tokenisation), kept in the object store, never recomputed.

Ranks share the computation by micro-batches of the same rows as one rank would have, so their number changes no bit.
A reference that moves is another matter: `madpo_trainer.moving_reference`.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madpo.errors import CorruptObjectError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo_trainer.ranks import Ranks

logger = logging.getLogger(__name__)


class ReferenceLogps(NamedTuple):
    """Of the R responses of some rows, one row after the other, float32, in nats."""

    logps: Tensor
    """[R]."""
    token_logps: Tensor | None
    """Of their tokens, one response after the other, [sum of tokens]; where they are kept."""


class ReferenceSource(Protocol):
    """The reference policy, asked about training rows."""

    def logps(self, rows: Sequence[int]) -> ReferenceLogps:
        """Log-probs of the rows' responses."""
        ...


@dataclass(frozen=True, slots=True)
class StoredLogps:
    """Log-probs of the responses of many rows, R in all, one row after the other; on the CPU."""

    values: Tensor
    """Sums over response tokens, float32 [R]."""
    responses: Tensor
    """Responses of each row, int64 [rows]."""
    tokens: Tensor
    """Tokens of each response, int64 [R]."""
    token_values: Tensor | None = None
    """Of single tokens, float32 [sum of tokens]; where a method looks at them."""

    def logps(self, rows: Sequence[int]) -> ReferenceLogps:
        """Log-probs of some rows' responses."""
        places = _ranges(self.responses, torch.tensor(rows))
        if self.token_values is None:
            return ReferenceLogps(self.values[places], None)
        return ReferenceLogps(self.values[places], self.token_values[_ranges(self.tokens, places)])

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are stored."""
        tensors = {"logps": self.values, "responses": self.responses, "tokens": self.tokens}
        return tensors if self.token_values is None else tensors | {"token_logps": self.token_values}


def _ranges(counts: Tensor, chosen: Tensor) -> Tensor:
    """Places of all entries of some of many runs that follow one another, given the runs' lengths."""
    ends = counts.cumsum(0)
    lengths = counts[chosen]
    # Within each run count up from its start; all runs at once.
    first = (ends - counts)[chosen] - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + first.repeat_interleave(lengths)


def assemble(chunks: Sequence[tuple[Sequence[int], Sequence[int], ReferenceLogps, Tensor]]) -> StoredLogps:
    """Put results of micro-batches back into the order of rows.

    Args:
        chunks: Of each micro-batch: rows, responses of each of them, their log-probs, tokens of each response.
    """
    rows = torch.tensor([row for indices, *_ in chunks for row in indices])
    counts = torch.tensor([count for _, responses, *_ in chunks for count in responses])
    values, tokens = torch.cat([logps.logps for _, _, logps, _ in chunks]), torch.cat([each for *_, each in chunks])
    flat = [logps.token_logps for _, _, logps, _ in chunks if logps.token_logps is not None]
    order = _ranges(counts, rows.argsort())
    token_values = torch.cat(flat)[_ranges(tokens, order)].float() if flat else None
    return StoredLogps(values[order].float(), counts[rows.argsort()], tokens[order], token_values)


def reference_digest(**parts: Any) -> str:
    """Name of the log-probs by everything they depend on, in JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_or_compute(
    store: ObjectStore, digest: str, *, rows: int, compute: Callable[[], StoredLogps], ranks: Ranks
) -> StoredLogps:
    """The stored log-probs, or computed and stored now.

    Args:
        store: Where they are kept.
        digest: Their name.
        rows: How many there must be.
        compute: Gives them on all ranks; called on all.
        ranks: Of the run.

    Raises:
        CorruptObjectError: The stored ones do not cover `rows` rows.
    """
    if ranks.lead(lambda: load(store, digest) is None):
        computed = compute()
        ranks.lead(lambda: _save(store, digest, computed))
    stored = ranks.together(lambda: load(store, digest))
    if stored is None or len(stored.responses) != rows or len(stored.values) != int(stored.responses.sum()):
        key = keys.reference_logps(digest)
        raise CorruptObjectError(f"{key} does not hold the log-probs of {rows} rows (delete it to have them computed)")
    return stored


def _save(store: ObjectStore, digest: str, logps: StoredLogps) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logps.safetensors"
        save_file(logps.tensors(), path)
        # Whoever stores first wins: a second attempt must train against the very same numbers.
        store.put_if_absent(keys.reference_logps(digest), path.read_bytes())


def load(store: ObjectStore, digest: str) -> StoredLogps | None:
    """The stored log-probs, or None."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logps.safetensors"
        try:
            store.get_file(keys.reference_logps(digest), path)
        except NotFoundError:
            return None
        tensors = load_file(path)
    return StoredLogps(tensors["logps"], tensors["responses"], tensors["tokens"], tensors.get("token_logps"))
