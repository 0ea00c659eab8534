import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from madpo.data import files
from madpo.data.files import MAX_ROW_BYTES, parse_format, read_rows
from madpo.data.records import parse_rows
from madpo.errors import InvalidArgumentError, InvalidPairError


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "rows"
    path.write_bytes(data)
    return path


def outcomes(rows: Iterator[tuple[int, Any]]) -> list[Any]:
    """Every row's value, or the description of why it cannot be read."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(rows))
        except InvalidPairError as error:
            found.append((error.violations[0].field, error.violations[0].description))
        except StopIteration:
            return found


def test_lines_end_in_any_way_and_blank_ones_count(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"prompt": "ä"}\r\n\n  \n{"prompt": "b\u2028c"}'.encode())

    assert list(read_rows(path, "jsonl")) == [(1, {"prompt": "ä"}), (4, {"prompt": "b\u2028c"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "a"', "is not JSON"),
        (b'{"prompt": "a"} x', "is not JSON"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "is not JSON"),
        (b'{"prompt": "\xff"}', "is not UTF-8 at byte 12"),
        (b'{"margin": NaN}', "holds NaN"),
        (b'{"margin": -Infinity}', "holds -Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (b'{"x": {"a": 1, "a": 1}}', "the key 'a' twice"),
        (b"[" * 40 + b"]" * 40, "deeper than 32"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 32"),
        (b'{"margin": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"prompt": "' + b"a" * MAX_ROW_BYTES + b'"}', "larger than 1048576 bytes"),
        (b'{"prompt": "' + b"a" * 3 * MAX_ROW_BYTES + b'"}', "larger than 1048576 bytes"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_reading_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    good = b'{"prompt": "fine"}'
    path = write(tmp_path, b"\n".join([good, line, good]))

    first, bad, last = outcomes(read_rows(path, "jsonl"))

    assert (first, last) == ((1, {"prompt": "fine"}), (3, {"prompt": "fine"}))
    assert bad[0] == "row 2"
    assert reason in bad[1]


def test_the_largest_allowed_line_is_read(tmp_path: Path) -> None:
    frame = len('{"prompt": ""}')
    path = write(tmp_path, b'{"prompt": "' + b"a" * (MAX_ROW_BYTES - frame) + b'"}\n{"prompt": "b"}')

    assert [row for row, _ in read_rows(path, "jsonl")] == [1, 2]


def test_parquet_gives_the_same_rows_as_json_lines(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    rows = [{"prompt": [user], "completion": [assistant | {"content": str(index)}]} for index in range(600)]
    lines = write(tmp_path, "\n".join(json.dumps(row) for row in rows).encode())
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"ignored": b"\xff"} for row in rows]), table, row_group_size=250)

    assert list(read_rows(table, "parquet")) == list(read_rows(lines, "jsonl"))


def test_columns_that_mean_nothing_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "embedding": [[1.0, 2.0]]}), path)

    assert list(read_rows(path, "parquet")) == [(1, {"prompt": "a"})]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "not readable Parquet"), (b"PAR1 nonsense PAR1", "not readable Parquet"), (b'{"a": 1}', "not readable")],
)
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        list(read_rows(write(tmp_path, data), "parquet"))


def test_a_torn_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [str(index) for index in range(5000)]}), path)
    data = bytearray(path.read_bytes())
    data[100:4000] = bytes(3900)
    path.write_bytes(data)

    with pytest.raises(InvalidArgumentError, match="not readable Parquet"):
        list(read_rows(path, "parquet"))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    text = pa.array([b"fine", b"\xff\xfe"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"prompt": text}), path)

    with pytest.raises(InvalidArgumentError, match=r"(?i)utf"):
        list(read_rows(path, "parquet"))


def test_parquet_without_a_known_column_is_refused_with_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["a"]}), path)

    with pytest.raises(InvalidArgumentError, match=r"none of the columns prompt.*'question'"):
        list(read_rows(path, "parquet"))


def test_a_large_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b" * (MAX_ROW_BYTES + 1), "c"]}), path)

    found = outcomes(read_rows(path, "parquet"))

    assert found == [(1, {"prompt": "a"}), ("row 2", "is larger than 1048576 bytes"), (3, {"prompt": "c"})]


def test_a_row_group_too_large_to_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [f"{index:0>1000}" for index in range(100)]}), path)
    monkeypatch.setattr(files, "MAX_ROW_GROUP_BYTES", 50_000)

    with pytest.raises(InvalidArgumentError, match=r"row group 0 .* write groups of at most 50000"):
        list(read_rows(path, "parquet"))


def test_unreadable_and_unusable_rows_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"prompt": "a"}\nnot json\n{"prompt": 3}\n')

    with pytest.raises(InvalidArgumentError) as caught:
        list(parse_rows(read_rows(path, "jsonl")))

    assert [violation.field for violation in caught.value.violations] == ["row 2", "row 3.prompt"]


def test_an_unknown_format_is_refused_by_name() -> None:
    assert parse_format("parquet") == "parquet"
    with pytest.raises(InvalidArgumentError, match="jsonl, parquet, got 'csv'"):
        parse_format("csv")
