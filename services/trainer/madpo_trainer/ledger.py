"""The margin ledger: one row per pair and epoch, so that "why did this pair count?" is a query.

Rows gather in memory between checkpoints, become a Parquet part with each checkpoint, and are joined into the
artifact `ledger.parquet` at the end. A resumed run knows the parts of the steps it does not repeat. The columns are the
fields of `LedgerRow` and, behind them, what the method says of each pair.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo.storage.content_names import get_verified, sha256_of

_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    float | None: pa.float64(),
    str | None: pa.string(),
}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one pair contributed to one step. Margins in reward-model logits and nats times beta."""

    pair_id: str
    row: int
    """Number in the uploaded file, from 1."""
    epoch: int
    """From 0."""
    step: int
    """From 1, as in `metrics.jsonl`."""
    reward_margin: float | None
    weight: float
    implicit_margin: float
    loss: float
    tokens: int
    neutral: bool = False
    """No scorer answered and the job's policy was to train with weight 1."""
    truncated: bool = False
    """The reward model read only a part of the pair."""
    dataset_weight: float | None = None
    """What the dataset says the pair weighs; `weight` includes it."""
    id: str | None = None
    """What its file calls the row."""
    source: str | None = None
    """Where its file says the row comes from."""
    figures: Mapping[str, float | bool] = field(default_factory=dict)
    """The method's own, by their names in `LossOutput.metrics`; `kept`, where the method drops pairs."""


_COLUMNS = tuple(column for column in fields(LedgerRow) if column.name != "figures")
SCHEMA = pa.schema([(column.name, _TYPES[column.type]) for column in _COLUMNS])  # type: ignore[index]
"""The columns that every ledger has."""


class Ledger:
    """Collects rows and stores them in parts.

    Args:
        parts: Keys of the parts written for the steps before this run.
    """

    def __init__(self, store: ObjectStore, *, job_id: str, attempt: int, parts: list[str]) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self.parts = list(parts)
        self._rows: list[LedgerRow] = []
        self._unstored: list[tuple[str, bytes]] = []

    def extend(self, rows: list[LedgerRow]) -> None:
        """Add the rows of a finished step."""
        self._rows += rows

    def cut(self, step: int) -> None:
        """End a part at `step`, of what was added since the last one; `store` stores it."""
        if not self._rows:
            return
        buffer = io.BytesIO()
        pq.write_table(_table(self._rows), buffer)
        data = buffer.getvalue()
        key = keys.ledger_part(self._job_id, step=step, attempt=self._attempt, sha256=sha256_of(data))
        self._unstored.append((key, data))
        self.parts.append(key)
        self._rows.clear()

    def store(self) -> None:
        """Store the parts that were cut; another thread may, while rows are added."""
        while self._unstored:
            self._store.put(*self._unstored[0])
            del self._unstored[0]

    def join(self, path: Path) -> None:
        """Write all parts as one Parquet file. Raises CorruptObjectError for one that was changed."""
        schema = pa.unify_schemas([pq.read_schema(self._open(key)) for key in self.parts])
        with pq.ParquetWriter(path, schema) as writer:
            for key in self.parts:
                writer.write_table(pq.read_table(self._open(key), schema=schema))

    def _open(self, key: str) -> io.BytesIO:
        return io.BytesIO(get_verified(self._store, key))


def _table(rows: list[LedgerRow]) -> pa.Table:
    """The rows with their figures as columns: `madpo/coefficient` as `madpo_coefficient`, which SQL takes unquoted."""
    types = {name: _TYPES[type(value)] for row in rows for name, value in row.figures.items()}
    columns: dict[str, list[Any]] = {column.name: [getattr(row, column.name) for row in rows] for column in _COLUMNS}
    columns |= {name: [row.figures.get(name) for row in rows] for name in types}
    table = pa.table(columns, schema=pa.schema([*SCHEMA, *types.items()]))
    return table.rename_columns([name.replace("/", "_") for name in table.column_names])
