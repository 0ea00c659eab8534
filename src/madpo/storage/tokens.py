"""Token ids of datasets in the object store: made once, then read by every training and every retry.

They are named by the dataset and by what makes tokens of it, the tokenizer and its chat template. What a training does
with long rows (`overlong`, `max_tokens`) is not part of the name: ids are kept whole, and a row is cut while it is
read, which costs next to nothing, so that one file serves all lengths and policies.

Arrow streams, not compressed, so that a host maps what it fetched into memory as it is. One row for each of the dataset
in its order: row (int64), prompt_ids (list of int32), responses (list of lists of int32), in the order of
`madpo.data.encode.row_responses`, and their masks (list of lists of int32, as `madpo.data.loss_mask` has them; null
where all tokens of all responses count).
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from madpo.data.encode import EncodedRow
from madpo.data.tokenize import template_sha256, tokenizer_sha256
from madpo.errors import NotFoundError, UnavailableError
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.files import Transfer, unwatched
from madpo.storage.growing import GrowingBundle, hold

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORM = 3
"""Counts up when the same rows get other ids, or the files another form."""

_PART_ROWS = 20_000
_BATCH_ROWS = 1_000
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
        return bundle.find_intact(self._store, token_prefix(dataset_id, tokenizer)) is not None

    def rows_kept(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> int:
        """Rows that whoever was stopped while writing had stored; of the last part perhaps fewer than that.

        They stay for whoever goes on with them now. Raises UnavailableError where they are being removed without end.
        """
        hold(self._store, token_prefix(dataset_id, tokenizer))
        return len(self._growing(dataset_id, tokenizer).files) * _PART_ROWS

    def write(
        self,
        dataset_id: str,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Iterable[EncodedRow],
        *,
        scratch: Path,
        first: int = 0,
    ) -> None:
        """Keep ids; memory holds 1,000 rows of them and the disk 20,000, which are stored as soon as they are full.

        Args:
            dataset_id: Whose they are.
            tokenizer: What made them.
            rows: In the dataset's order, from `first` on, without a gap. Whatever this raises goes through; what was
                stored by then is kept for the next writer.
            scratch: Local directory for the files; emptied again.
            first: Rows that are not in `rows`, as `rows_kept` said.

        Raises:
            UnavailableError: Those are not there any more.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        hold(self._store, token_prefix(dataset_id, tokenizer))
        source, parts = iter(rows), self._growing(dataset_id, tokenizer)
        if len(parts.files) * _PART_ROWS < first:
            raise UnavailableError(f"token ids of {dataset_id} that were kept are gone: make all of them")
        del parts.files[-(-first // _PART_ROWS) :]
        count = first
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            path = Path(directory) / "part.arrow"
            while written := _write_part(source, path):
                parts.add(path)
                count += written
        parts.finish(
            {
                "dataset_id": dataset_id,
                "tokenizer_sha256": tokenizer_sha256(tokenizer),
                "template_sha256": template_sha256(tokenizer),
                "rows": count,
            }
        )
        self._store.delete(keys.held(token_prefix(dataset_id, tokenizer)))

    def delete(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Remove the ids, to be made again; absent is fine."""
        bundle.delete(self._store, token_prefix(dataset_id, tokenizer))

    def fetch(
        self,
        dataset_id: str,
        tokenizer: "PreTrainedTokenizerBase",
        directory: Path,
        *,
        transfer: Transfer = unwatched,
    ) -> None:
        """Copy the files to a local directory, to be mapped into memory.

        Raises:
            NotFoundError: They were not made yet.
            CorruptObjectError: A file does not match its digest.
        """
        self._manifest(dataset_id, tokenizer)
        prefix = token_prefix(dataset_id, tokenizer)
        # Named by a digest that says nothing to people.
        bundle.fetch(self._store, prefix, directory, transfer=lambda _, size: transfer("fetching tokens", size))

    def read(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> Iterator[EncodedRow]:
        """The ids in the dataset's order.

        Raises:
            NotFoundError: They were not made yet (at the call).
            CorruptObjectError: A file does not match its digest (while iterating).
        """
        return self._read(token_prefix(dataset_id, tokenizer), self._manifest(dataset_id, tokenizer))

    def _manifest(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> bundle.Manifest:
        try:
            return bundle.read_manifest(self._store, token_prefix(dataset_id, tokenizer))
        except NotFoundError as error:
            raise NotFoundError(f"{dataset_id} has no tokens by this tokenizer and chat template") from error

    def _read(self, prefix: str, manifest: bundle.Manifest) -> Iterator[EncodedRow]:
        for file in manifest.files:
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "part"
                bundle.fetch_file(self._store, prefix, file, path)
                with pa.ipc.open_stream(path) as part:
                    for batch in part:
                        yield from map(_encoded, *(batch[name].to_pylist() for name in _SCHEMA.names))

    def _growing(self, dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> GrowingBundle:
        return GrowingBundle(self._store, token_prefix(dataset_id, tokenizer), suffix="arrow")


def token_prefix(dataset_id: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Where the ids of a dataset by a tokenizer and its chat template are kept."""
    parts = [_FORM, tokenizer_sha256(tokenizer), template_sha256(tokenizer)]
    return keys.tokens(dataset_id, hashlib.sha256(documents.encode(parts)).hexdigest()[:32])


def _write_part(rows: Iterator[EncodedRow], path: Path) -> int:
    """Write the next rows, as many as a part has; says how many there were."""
    count = 0
    with pa.ipc.new_stream(path, _SCHEMA) as stream:
        while batch := list(islice(rows, min(_BATCH_ROWS, _PART_ROWS - count))):
            stream.write_batch(_batch(batch))
            count += len(batch)
    return count


def _batch(rows: list[EncodedRow]) -> pa.RecordBatch:
    columns = [
        [row.row for row in rows],
        [row.prompt_ids for row in rows],
        [list(row.responses) for row in rows],
        [[list(mask) for mask in row.masks] or None for row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _encoded(row: int, prompt_ids: list[int], responses: list[list[int]], masks: list[list[int]] | None) -> EncodedRow:
    return EncodedRow(row, prompt_ids, tuple(responses), tuple(map(tuple, masks or ())))
