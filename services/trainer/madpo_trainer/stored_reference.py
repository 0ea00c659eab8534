"""Reference log-probs: computed once per (model, data, tokenisation), kept in the object store, never recomputed.

Only those of the rows that a training will ask for are made, in chunks of neighbouring rows, each stored as it is
finished: whoever is stopped loses at most one. Which rows are computed together follows from the rows asked for and
their lengths alone, neither from what is stored already nor from the number of ranks, who share the micro-batches of a
chunk: neither changes a bit. A reference that moves is another matter: `madpo_trainer.moving_reference`.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from madpo.errors import CorruptObjectError, NotFoundError
from madpo.models.logps import ResponseGroup
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.growing import GrowingBundle
from madpo.storage.local_copies import LocalCopies
from madpo.worker.phase import BeginPhase, Phase
from madpo_trainer.ranks import Ranks

logger = logging.getLogger(__name__)

_COLUMNS = {"responses": np.int32, "tokens": np.int32, "logps": np.float32, "token_logps": np.float32}
"""Of a chunk, and of the file of each that a host has."""
_UNVERIFIED = ".safetensors"
"""What the chunks of version 0.1.0 end with, which have no manifest."""


class ReferenceLogps(NamedTuple):
    """Of the R responses of some rows, one row after the other, float32, in nats."""

    logps: Tensor
    """[R]."""
    token_logps: Tensor | None
    """Of their tokens that count, one response after the other, [sum of tokens]; where they are kept."""


class ReferenceSource(Protocol):
    """The reference policy, asked about training rows."""

    def logps(self, rows: Sequence[int]) -> ReferenceLogps:
        """Log-probs of the rows' responses."""
        ...


@dataclass(frozen=True)
class StoredLogps:
    """Log-probs of the responses of many rows, R in all, one row after the other; on the CPU."""

    values: Tensor
    """Sums over response tokens, float32 [R]."""
    responses: Tensor
    """Responses of each row, int32 [rows]."""
    tokens: Tensor
    """Tokens of each response that count, int32 [R]."""
    token_values: Tensor | None = None
    """Of single tokens, float32 [sum of tokens]; where a method looks at them."""
    rows: NDArray[np.int64] | None = None
    """Which rows of the training these are, in order; None for all."""

    def logps(self, rows: Sequence[int]) -> ReferenceLogps:
        """Log-probs of some rows' responses."""
        among = torch.tensor(rows) if self.rows is None else torch.from_numpy(np.searchsorted(self.rows, rows))
        places = _ranges(self._first_response, self.responses, among)
        if self.token_values is None:
            return ReferenceLogps(self.values[places], None)
        return ReferenceLogps(self.values[places], self.token_values[_ranges(self._first_token, self.tokens, places)])

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are stored."""
        tensors = {"logps": self.values, "responses": self.responses, "tokens": self.tokens}
        return tensors if self.token_values is None else tensors | {"token_logps": self.token_values}

    @cached_property
    def _first_response(self) -> Tensor:
        return _starts(self.responses)

    @cached_property
    def _first_token(self) -> Tensor:
        return _starts(self.tokens)


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


def _ranges(starts: Tensor, counts: Tensor, chosen: Tensor) -> Tensor:
    """Places of all entries of some of many runs that follow one another, given the runs' starts and lengths."""
    lengths = counts[chosen]
    # Within each run count up from its start; all runs at once.
    first = starts[chosen] - _starts(lengths)
    return torch.arange(int(lengths.sum())) + first.repeat_interleave(lengths)


def assemble(parts: Sequence[tuple[Sequence[int], Sequence[int], ReferenceLogps, Tensor]]) -> StoredLogps:
    """Put results of micro-batches back into the order of rows.

    Args:
        parts: Of each micro-batch: rows, responses of each of them, their log-probs, tokens of each response.
    """
    rows = torch.tensor([row for indices, *_ in parts for row in indices])
    counts = torch.tensor([count for _, responses, *_ in parts for count in responses])
    values, tokens = torch.cat([logps.logps for _, _, logps, _ in parts]), torch.cat([each for *_, each in parts])
    flat = [logps.token_logps for _, _, logps, _ in parts if logps.token_logps is not None]
    order = _ranges(_starts(counts), counts, rows.argsort())
    token_values = torch.cat(flat)[_ranges(_starts(tokens), tokens, order)].float() if flat else None
    return StoredLogps(values[order].float(), counts[rows.argsort()].int(), tokens[order].int(), token_values)


def reference_digest(**parts: Any) -> str:
    """Name of the log-probs by everything they depend on, in JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def rows_digest(rows: NDArray[np.int64]) -> str:
    """Name of a choice of rows."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceStore:
    """The chunks of reference log-probs, in the object store and on this host.

    Args:
        store: Where chunks are kept.
        copies: Of this host, which its ranks map into memory.
        ranks: Of the run; all make the same calls.
        begin: Begins a phase of the run.
        chunk_tokens: Of the rows of a chunk, about.
    """

    store: ObjectStore
    copies: LocalCopies
    ranks: Ranks
    begin: BeginPhase
    chunk_tokens: int

    def load_or_compute(
        self,
        digest: str,
        groups: Sequence[ResponseGroup],
        *,
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
        compute: Callable[[Sequence[ResponseGroup], Phase], StoredLogps],
    ) -> StoredLogps:
        """The log-probs of some rows: those that are stored, the others computed and stored now.

        Args:
            digest: Names the log-probs of these rows, by everything they depend on.
            groups: Of all rows.
            rows: Those that are asked for, in order.
            lengths: Tokens of each of them.
            compute: Gives those of some groups on all ranks; called on all.

        Raises:
            CorruptObjectError: A stored chunk does not hold its rows; one that was changed since is computed again.
            Interrupted: The run is asked to stop; the chunks that are finished stay.
        """
        chunks = plan_chunks(lengths, self.chunk_tokens)
        names = [keys.reference_logps_chunk(digest, number) for number in range(len(chunks))]
        sizes = [chunk.stop - chunk.start for chunk in chunks]

        def fetch() -> Path:
            return self.ranks.apart(
                lambda: self.copies.fetch(
                    keys.reference_logps(digest), lambda directory: self._join(names, sizes, directory)
                )
            )

        def complete() -> None:
            there = self.ranks.lead(lambda: self._stored(digest))
            missing = [number for number, name in enumerate(names) if name not in there]
            left = sum(sizes[number] for number in missing)
            phase = self.begin("reference log-probs", len(rows), unit="rows", done=len(rows) - left) if left else None
            for number in missing:
                assert phase is not None
                computed = compute([groups[row] for row in rows[chunks[number]].tolist()], phase)
                self.ranks.lead(partial(self._save, names[number], computed))

        complete()
        try:
            directory = fetch()
        except CorruptObjectError:
            self.ranks.lead(lambda: self._remove_damaged(names))
            complete()
            directory = fetch()
        return _map(directory, rows=None if len(rows) == len(groups) else rows)

    def _stored(self, digest: str) -> set[str]:
        """Names of the chunks that are there; those of version 0.1.0 are single objects without a digest."""
        listed = (info.key for info in self.store.list(f"{keys.reference_logps(digest)}/"))
        return {key.removesuffix(f"/{keys.MANIFEST}").removesuffix(_UNVERIFIED) for key in listed}

    def _save(self, name: str, logps: StoredLogps) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "logps.safetensors"
            save_file(logps.tensors(), path)
            chunk = GrowingBundle(self.store, name, suffix="safetensors")
            chunk.files.clear()  # what others left unfinished
            chunk.add(path)
            # Whoever finishes first wins: a second attempt must train against the very same numbers.
            chunk.finish({})

    def _remove_damaged(self, names: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            for name in names:
                try:
                    self._fetch(name, Path(directory) / "chunk.safetensors")
                except (CorruptObjectError, NotFoundError) as error:
                    logger.warning("damaged reference log-probs are computed again", extra={"error": str(error)})
                    bundle.delete(self.store, name)

    def _fetch(self, name: str, path: Path) -> None:
        if self.store.head(f"{name}{_UNVERIFIED}") is not None:
            self.store.get_file(f"{name}{_UNVERIFIED}", path)
            return
        files = bundle.read_manifest(self.store, name).files
        bundle.fetch_file(self.store, name, files[0], path)

    def _join(self, names: Sequence[str], sizes: Sequence[int], directory: Path) -> None:
        """The chunks one after the other, a file for each column, to be mapped into memory."""
        part = directory / "chunk.safetensors"
        for name, rows in zip(names, sizes, strict=True):
            self._fetch(name, part)
            tensors = load_file(part)
            counts, tokens = tensors["responses"], tensors["tokens"]
            wanted = {"logps": int(counts.sum()), "responses": rows, "tokens": int(counts.sum())}
            wanted |= {"token_logps": int(tokens.sum())} if "token_logps" in tensors else {}
            if {column: len(tensor) for column, tensor in tensors.items()} != wanted:
                raise CorruptObjectError(f"{name} does not hold the log-probs of its {rows} rows (remove it)")
            for column, tensor in tensors.items():
                with (directory / column).open("ab") as file:
                    tensor.numpy().astype(_COLUMNS[column]).tofile(file)
        part.unlink()


def plan_chunks(lengths: NDArray[np.int64], chunk_tokens: int) -> list[slice]:
    """Rows one after the other, a new chunk wherever another `chunk_tokens` are full."""
    before = np.cumsum(lengths) - lengths
    borders = np.flatnonzero(np.diff(before // chunk_tokens)) + 1
    edges = [0, *borders.tolist(), len(lengths)]
    return [slice(start, end) for start, end in pairwise(edges)]


def _map(directory: Path, *, rows: NDArray[np.int64] | None) -> StoredLogps:
    def tensor(column: str) -> Tensor:
        # Copied where it is written to, which is nowhere: torch knows of no memory that must not be written to.
        return torch.from_numpy(np.memmap(directory / column, _COLUMNS[column], mode="c"))

    token_values = tensor("token_logps") if (directory / "token_logps").exists() else None
    return StoredLogps(tensor("logps"), tensor("responses"), tensor("tokens"), token_values, rows)
