"""The margin ledger: one row per pair and epoch, so that "why did this pair count?" is a query.

Rows gather in memory between checkpoints, are stored as Parquet parts with each checkpoint, and are joined into the
artifact `ledger.parquet` at the end. A resumed run knows the parts of the steps it does not repeat.
"""

import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.ports import ObjectStore
from madpo.storage import keys

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), float | None: pa.float64()}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one pair contributed to one step. Margins in reward-model logits and nats times beta."""

    pair_id: str
    row: int
    epoch: int
    step: int
    reward_margin: float | None
    weight: float
    implicit_margin: float
    loss: float
    tokens: int
    neutral: bool = False
    """No scorer answered and the job's policy was to train with weight 1."""


SCHEMA = pa.schema([(column.name, _TYPES[column.type]) for column in fields(LedgerRow)])  # type: ignore[index]


class Ledger:
    """Collects rows and stores them in parts.

    Args:
        parts: Keys of the parts written for the steps before this run.
    """

    def __init__(self, store: ObjectStore, *, job_id: str, attempt: int, parts: list[str]) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self.parts = list(parts)
        self._rows: list[LedgerRow] = []

    def extend(self, rows: list[LedgerRow]) -> None:
        """Add the rows of a finished step."""
        self._rows += rows

    def flush(self, step: int) -> None:
        """Store what was added since the last flush as the part that ends at `step`."""
        if not self._rows:
            return
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in self._rows], schema=SCHEMA), buffer)
        key = keys.ledger_part(self._job_id, step=step, attempt=self._attempt)
        self._store.put(key, buffer.getvalue())
        self.parts.append(key)
        self._rows.clear()

    def join(self, path: Path) -> None:
        """Write all parts as one Parquet file."""
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for key in self.parts:
                writer.write_table(pq.read_table(io.BytesIO(self._store.get(key)), schema=SCHEMA))
