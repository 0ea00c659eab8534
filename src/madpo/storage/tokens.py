"""Token ids of datasets in the object store: made once, then read by every training and every retry.

They are named by the dataset and by what makes tokens of it, the tokenizer and its chat template. What a training does
with long rows (`overlong`, `max_tokens`) is not part of the name: ids are kept whole, and a row is cut while it is
read, which costs next to nothing, so that one file serves all lengths and policies.

Parquet, one row for each of the dataset in its order: row (int64), prompt_ids (list of int32), responses (list of lists
of int32), in the order of `madpo.data.encode.row_responses`, and their masks (list of lists of int32, as
`madpo.data.loss_mask` has them; null where all tokens of all responses count).
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.data.encode import EncodedRow
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import AlreadyExistsError, NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORM = 2
"""Counts up when the same rows get other ids, or the files another form."""

_PART_ROWS = 20_000
_READ_ROWS = 1_000
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(pa.list_(pa.int32()))),
        ("masks", pa.list_(pa.list_(pa.int32()))),
    ]
)


class TokenStore:
    """Writes and reads the token ids of datasets."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def has(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether the ids are there, whole."""
        return bundle.find_intact(self._store, _prefix(dataset_id, tokenizer)) is not None

    def write(
        self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase", rows: Iterable[EncodedRow], *, scratch: Path
    ) -> None:
        """Keep ids; memory holds 20,000 rows of them.

        Args:
            dataset_id: Whose they are.
            tokenizer: What made them.
            rows: In the dataset's order. Whatever this raises goes through, and nothing is kept.
            scratch: Local directory for the files; emptied again.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        source = iter(rows)
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            count = parts = 0
            while part := list(islice(source, _PART_ROWS)):
                pq.write_table(_table(part), Path(directory) / f"part-{parts:05d}.parquet", compression="zstd")
                count, parts = count + len(part), parts + 1
            description = {
                "dataset_id": dataset_id,
                "tokenizer_sha256": tokenizer_sha256(tokenizer),
                "template_sha256": template_sha256(tokenizer),
                "rows": count,
            }
            with contextlib.suppress(AlreadyExistsError):  # the same ids, written by another version of Arrow
                bundle.publish(self._store, _prefix(dataset_id, tokenizer), Path(directory), metadata=description)

    def read(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> Iterator[EncodedRow]:
        """The ids in the dataset's order.

        Raises:
            NotFoundError: They were not made yet (at the call).
            CorruptObjectError: A file does not match its digest (while iterating).
        """
        prefix = _prefix(dataset_id, tokenizer)
        try:
            manifest = bundle.read_manifest(self._store, prefix)
        except NotFoundError as error:
            raise NotFoundError(f"{dataset_id} has no tokens by this tokenizer and chat template") from error
        return self._read(prefix, manifest)

    def _read(self, prefix: str, manifest: bundle.Manifest) -> Iterator[EncodedRow]:
        for file in manifest.files:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "part"
                bundle.fetch_file(self._store, prefix, file, path)
                with pq.ParquetFile(path) as part:
                    for batch in part.iter_batches(_READ_ROWS):
                        yield from map(_encoded, *(batch[name].to_pylist() for name in _SCHEMA.names))


def _prefix(dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    parts = [_FORM, tokenizer_sha256(tokenizer), template_sha256(tokenizer)]
    return keys.tokens(dataset_id, hashlib.sha256(documents.encode(parts)).hexdigest()[:32])


def _table(rows: list[EncodedRow]) -> pa.Table:
    columns = [
        [row.row for row in rows],
        [row.prompt_ids for row in rows],
        [list(row.responses) for row in rows],
        [[list(mask) for mask in row.masks] or None for row in rows],
    ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)


def _encoded(row: int, prompt_ids: list[int], responses: list[list[int]], masks: list[list[int]] | None) -> EncodedRow:
    return EncodedRow(row, prompt_ids, tuple(responses), tuple(map(tuple, masks or ())))
