"""Reference log-probs: computed once per (model, data, tokenisation), kept in the object store, never recomputed.

Ranks share the computation by micro-batches of the same rows as one rank would have, so their number changes no bit.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madpo.errors import CorruptObjectError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo_trainer.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """Summed response log-probs of the reference policy, one entry per row, float32, in nats."""

    chosen: Tensor
    rejected: Tensor


def reference_digest(**parts: str | int | float) -> str:
    """Name of the log-probs by everything they depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load_or_compute(
    store: ObjectStore, digest: str, *, rows: int, compute: Callable[[], ReferenceLogps], ranks: Ranks
) -> ReferenceLogps:
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
    if stored is None or len(stored.chosen) != rows or len(stored.rejected) != rows:
        key = keys.reference_logps(digest)
        raise CorruptObjectError(f"{key} does not hold the log-probs of {rows} rows (delete it to have them computed)")
    return stored


def _save(store: ObjectStore, digest: str, logps: ReferenceLogps) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logps.safetensors"
        save_file({"chosen": logps.chosen, "rejected": logps.rejected}, path)
        # Whoever stores first wins: a second attempt must train against the very same numbers.
        store.put_if_absent(keys.reference_logps(digest), path.read_bytes())


def load(store: ObjectStore, digest: str) -> ReferenceLogps | None:
    """The stored log-probs, or None."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "logps.safetensors"
        try:
            store.get_file(keys.reference_logps(digest), path)
        except NotFoundError:
            return None
        tensors = load_file(path)
    return ReferenceLogps(tensors["chosen"], tensors["rejected"])


def gather(chunks: Sequence[tuple[Sequence[int], Tensor, Tensor]], rows: int) -> ReferenceLogps:
    """Put micro-batch results (row indices, chosen, rejected) back into row order."""
    chosen, rejected = torch.empty(rows), torch.empty(rows)
    for indices, chosen_logps, rejected_logps in chunks:
        chosen[list(indices)] = chosen_logps.float().cpu()
        rejected[list(indices)] = rejected_logps.float().cpu()
    return ReferenceLogps(chosen, rejected)
