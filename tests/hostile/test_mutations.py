"""Good files with some bytes changed: each is read, or refused with a typed error. Nothing else may come of it."""

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pyarrow as pa
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from madpo.data.files.reading import DataFile, FileRows
from madpo.data.records import parse_rows
from madpo.errors import InvalidArgumentError
from tests import data_counts
from tests.hostile.case import CHAT
from tests.hostile.table_cases import arrow, parquet

pytestmark = pytest.mark.data

ROWS = [CHAT | {"margin": number / 7} for number in range(40)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()
TABLE = pa.Table.from_pylist(ROWS)

GOOD_FILES: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": lambda: LINES,
    "rows.json": lambda: json.dumps(ROWS).encode(),
    "rows.csv": lambda: b"prompt,chosen,rejected\n" + b'"1+1?","2","3"\n' * 40,
    "rows.jsonl.gz": lambda: gzip.compress(LINES),
    "rows.jsonl.zst": lambda: zstd.compress(LINES),
    "plain.parquet": lambda: parquet(TABLE, use_dictionary=False, compression="none"),
    "zstd.parquet": lambda: parquet(TABLE, compression="zstd", row_group_size=15),
    "v2.parquet": lambda: parquet(TABLE, data_page_version="2.0", compression="gzip"),
    "stream.arrow": lambda: arrow(TABLE),
    "file.arrow": lambda: arrow(TABLE, pa.ipc.new_file),
    "lz4.arrow": lambda: arrow(TABLE, compression="lz4"),
    "dictionary.arrow": lambda: arrow(pa.table({"prompt": pa.array(["a", "b"] * 20).dictionary_encode()})),
}
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True) | st.floats(0.9, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80"]),
        st.sampled_from(["replace", "insert", "delete"]),
    ),
    min_size=1,
    max_size=6,
)


@cache
def good(name: str) -> bytes:
    return GOOD_FILES[name]()


@pytest.mark.promise("H2")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(changes=CHANGES)
@pytest.mark.parametrize("name", GOOD_FILES)
def test_a_changed_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[float, bytes, str]]
) -> None:
    data_counts.add("property examples")
    data = bytearray(good(name))
    for share, piece, how in changes:
        at = int(share * len(data))
        data[at : at if how == "insert" else at + len(piece)] = b"" if how == "delete" else piece
    path = tmp_path_factory.getbasetemp() / f"changed-{name}"
    path.write_bytes(data)

    with suppress(InvalidArgumentError):
        assert list(parse_rows(FileRows([DataFile(path, name)])))


def test_unchanged_they_are_all_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("good")
    for name in GOOD_FILES:
        (directory / name).write_bytes(good(name))
        assert len(list(parse_rows(FileRows([DataFile(directory / name, name)])))) == 40, name
