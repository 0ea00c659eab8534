"""Rows of datasets with their token ids, as a host holds them: Arrow files mapped into memory, read row by row.

The files are made once for all ranks and all jobs of a host, and the ranks share what they read of them: it is the page
cache that holds it. A rank's own memory holds a few numbers of each row, never the rows.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from madpo.data.encode import EncodedRow
from madpo.storage.dataset_columns import decode_row
from madpo.types import DatasetKind, DatasetRow
from madpo_trainer.row_lengths import Ragged

T = TypeVar("T", covariant=True)

_REMEMBERED = 512
"""Rows of a step are looked at several times; as lists of Python's integers they are large."""


class LazyRows(Sequence[T], Generic[T]):
    """Things by number that are made when they are asked for.

    Args:
        count: How many there are.
        make: Makes one.
        remember: Keep the last few hundred.
    """

    def __init__(self, count: int, make: Callable[[int], T], *, remember: bool = False) -> None:
        self._count, self._make = count, lru_cache(_REMEMBERED)(make) if remember else make

    def __len__(self) -> int:
        return self._count

    def only(self, numbers: NDArray[np.int64]) -> "LazyRows[T]":
        """Some of them."""
        return LazyRows(len(numbers), lambda index: self._make(int(numbers[index])))

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(each) for each in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(int(index) % self._count)


class MappedRows:
    """The rows of a dataset and their token ids, in order.

    Args:
        kind: What the rows are.
        rows: Directory of the rows' Arrow files, from `DatasetStore.fetch`.
        tokens: The same of the ids, from `TokenStore.fetch`.
    """

    def __init__(self, kind: DatasetKind, rows: Path, tokens: Path) -> None:
        self._kind, self._columns = kind, _map_files(rows)
        ids = _map_files(tokens)
        names = self._columns.column_names
        # Most rows have few of the columns that there are; a row costs what it has.
        self._rows = self._columns.select([name for name in names if self._columns[name].null_count < ids.num_rows])
        if self._rows.num_rows != ids.num_rows:
            raise ValueError(f"{rows} has {self._rows.num_rows} rows, {tokens} has {ids.num_rows}")
        self._prompts = [_List.of(chunk) for chunk in ids["prompt_ids"].chunks]
        self._responses = [_List.of(chunk) for chunk in ids["responses"].chunks]
        self._ids = [_List.of(chunk.values) for chunk in ids["responses"].chunks]
        self._masks = ids["masks"] if ids["masks"].null_count < ids.num_rows else None
        self._ends = np.cumsum([len(chunk) for chunk in ids["prompt_ids"].chunks]).tolist()

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def row(self, index: int) -> DatasetRow:
        """A row of the dataset."""
        return decode_row(self._rows.fast_slice(index, 1).to_pylist()[0], self._kind)

    def encoded(self, index: int) -> EncodedRow:
        """The ids of a row, whole."""
        chunk = bisect_right(self._ends, index)
        place = index - (self._ends[chunk - 1] if chunk else 0)
        ids = self._ids[chunk]
        responses = tuple(ids[each].tolist() for each in range(*self._responses[chunk].bounds(place)))
        masks = (self._masks[index].as_py() or ()) if self._masks is not None else ()
        return EncodedRow(self.number(index), self._prompts[chunk][place].tolist(), responses, tuple(map(tuple, masks)))

    def with_ids_from(self, lowest: int, indices: Iterable[int]) -> Iterator[tuple[int, Sequence[Sequence[int]]]]:
        """Numbers of rows and all their ids; nothing where no id of any row is as large as the lowest asked for."""
        if max(int(chunk.flat.max(initial=-1)) for chunk in (*self._prompts, *self._ids)) >= lowest:
            for index in indices:
                ids = self.encoded(int(index))
                yield ids.row, (ids.prompt_ids, *ids.responses)

    @property
    def has_masks(self) -> bool:
        """Whether there are responses of which not all tokens count."""
        return self._masks is not None

    def number(self, index: int) -> int:
        """The row's number in the uploaded file."""
        return int(self.numbers("row")[index])

    @lru_cache(maxsize=4)  # noqa: B019 - lives as long as the run
    def numbers(self, column: str) -> NDArray[Any]:
        """A column of numbers, [rows]; NaN where a row has none."""
        values: NDArray[Any] = self._columns[column].to_numpy()
        return values

    def scores(self) -> Ragged:
        """Of the responses of lists."""
        lists = [_List.of(chunk) for chunk in self._rows["scores"].chunks]
        return Ragged(np.concatenate([each.lengths for each in lists]), np.concatenate([each.flat for each in lists]))

    def prompt_lengths(self) -> NDArray[Any]:
        """Tokens of the prompts, int32 [rows]."""
        return np.concatenate([chunk.lengths for chunk in self._prompts])

    def response_lengths(self) -> Ragged:
        """Tokens of each response of each row."""
        counts = np.concatenate([chunk.lengths for chunk in self._responses])
        return Ragged(counts, np.concatenate([chunk.lengths for chunk in self._ids]))


@dataclass(frozen=True, slots=True)
class _List:
    """A list array of Arrow without its objects: views of the mapped file."""

    offsets: NDArray[np.int32]
    values: NDArray[Any]
    """Of all lists, one after the other; none where they are lists themselves."""

    @classmethod
    def of(cls, array: Any) -> "_List":
        is_nested = hasattr(array.values, "offsets")
        return cls(array.offsets.to_numpy(), np.empty(0) if is_nested else array.values.to_numpy())

    def bounds(self, place: int) -> tuple[int, int]:
        return int(self.offsets[place]), int(self.offsets[place + 1])

    def __getitem__(self, place: int) -> NDArray[Any]:
        return self.values[slice(*self.bounds(place))]

    @property
    def lengths(self) -> NDArray[Any]:
        return np.diff(self.offsets)

    @property
    def flat(self) -> NDArray[Any]:
        return self.values[self.offsets[0] : self.offsets[-1]]


def _map_files(directory: Path) -> Any:
    """The Arrow files of a directory as one table, mapped into memory."""
    import datasets  # takes a second: only who trains pays

    parts = [datasets.Dataset.from_file(str(path)) for path in sorted(directory.glob("*.arrow"))]
    return datasets.concatenate_datasets(parts).data
