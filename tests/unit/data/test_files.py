"""Files of rows: every format and compression gives the same rows; what cannot be read is named."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis.strategies import characters, floats, lists, text

from madpo.data.file_formats import format_of_name, parse_format
from madpo.data.files.limits import DEFAULT_LIMITS, ReadLimits
from madpo.data.files.reading import DataFile, FileRows, detect_format, read_rows
from madpo.data.records import parse_rows
from madpo.errors import InvalidArgumentError, InvalidPairError
from tests import data_counts

pytestmark = pytest.mark.data

MAX_ROW_BYTES = DEFAULT_LIMITS.max_row_bytes


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

    limits = ReadLimits(max_field_bytes=MAX_ROW_BYTES)
    assert [row for row, _ in read_rows(path, "jsonl", limits=limits)] == [1, 2]
    assert outcomes(read_rows(path, "jsonl"))[0] == (
        "row 1.prompt",
        "is larger than 524288 bytes (max_field_bytes): shorten or drop it",
    )


def encode_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    for row in rows:
        table.writerow({name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()})
    return text.getvalue().encode()


def encode_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=250)
    return file.getvalue()


def encode_arrow(rows: list[dict[str, Any]], open_writer: Any = pa.ipc.new_stream, **options: Any) -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with open_writer(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=250)
    return file.getvalue()


ENCODERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "rows.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "data.json": lambda rows: json.dumps({"data": rows}).encode(),
    "lines.json": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "rows.parquet": encode_parquet,
    "stream.arrow": encode_arrow,
    "file.arrow": partial(encode_arrow, open_writer=pa.ipc.new_file),
    "lz4.feather": partial(encode_arrow, open_writer=pa.ipc.new_file, compression="lz4"),
    "zstd.feather": partial(encode_arrow, open_writer=pa.ipc.new_file, compression="zstd"),
    "rows.csv": encode_csv,
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}

user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CHATS: list[dict[str, Any]] = [
    {"prompt": [user], "completion": [assistant | {"content": f'] , }} \\ " \n ä {index}'}]} for index in range(600)
]


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_format_and_compression_gives_the_same_rows(tmp_path: Path, name: str, ending: str) -> None:
    path = write(tmp_path, COMPRESSORS[ending](ENCODERS[name](CHATS)))

    rows = FileRows([DataFile(path, name + ending)])
    data_counts.note("file formats", detect_format(DataFile(path, name)))
    data_counts.note("encodings of files", name + ending)

    assert list(rows) == list(enumerate(CHATS, start=1))


@settings(max_examples=15, deadline=None)
@given(
    texts=lists(text(characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1),
    margins=lists(floats(allow_nan=False, allow_infinity=False), min_size=1),
)
@pytest.mark.parametrize("name", ENCODERS)
def test_any_text_and_number_comes_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str], margins: list[float]
) -> None:
    rows = [
        {"prompt": prompt, "chosen": [user | {"content": prompt}], "margin": margin}
        for prompt, margin in zip(cycle(texts), [*margins, *range(len(texts) - 1)], strict=False)
    ]
    path = tmp_path_factory.mktemp("rows") / "rows"
    for compress in COMPRESSORS.values():
        path.write_bytes(compress(ENCODERS[name](rows)))
        data_counts.add("property examples")

        assert [row for _, row in FileRows([DataFile(path, name)])] == rows


def test_the_content_says_the_format_and_the_name_only_where_it_may_be_several(tmp_path: Path) -> None:
    def detected(data: bytes, name: str) -> str:
        return detect_format(DataFile(write(tmp_path, data), name))

    assert {
        name: detected(encode(CHATS), "misnamed.jsonl") for name, encode in ENCODERS.items() if "csv" not in name
    } == {name: {"lines.json": "jsonl"}.get(name) or format_of_name(name) for name in ENCODERS if "csv" not in name}
    assert detected(b"[1], x", "table.CSV.gz") == "csv"
    assert detected(b'\xef\xbb\xbf \n{ "data" : [', "") == "json"
    assert detected(b"", "empty.jsonl") == "jsonl"
    with pytest.raises(InvalidArgumentError, match=r"notes\.txt is no Parquet, Arrow or JSON; name its format"):
        detected(b"hello", "notes.txt")


def test_rows_are_numbered_on_through_files_and_named_as_in_theirs(tmp_path: Path) -> None:
    names = ["a.jsonl", "b.csv", "c.json"]
    for name, data in zip(
        names, [b'{"prompt": "1"}\n\n{"prompt": "2"}', b"prompt\n3\n4\n", b'[{"prompt": 5}]'], strict=True
    ):
        (tmp_path / name).write_bytes(data)
    rows = FileRows([DataFile(tmp_path / name, name) for name in names])

    with pytest.raises(InvalidArgumentError) as caught:
        list(parse_rows(rows))

    assert [violation.field for violation in caught.value.violations] == ["row 6.prompt"]
    explained = rows.explain(caught.value)
    assert [violation.field for violation in explained.violations] == ["c.json row 1.prompt"]
    assert "first c.json row 1.prompt: must be text" in str(explained)
    assert [rows.locate(number) for number in (1, 3, 4, 5, 6)] == [
        ("a.jsonl", 1),
        ("a.jsonl", 3),
        ("b.csv", 1),
        ("b.csv", 2),
        ("c.json", 1),
    ]


@pytest.mark.parametrize(
    ("name", "data", "reason", "fields"),
    [
        ("bad.parquet", b"PAR1", "bad.parquet: the file is not readable Parquet", []),
        ("bad.csv", b"prompt,\xff\na,b\n", "bad.csv: header: is not UTF-8", ["bad.csv header"]),
        ("bad.csv", b'prompt\n"a\n', "bad.csv row 1: is not CSV", ["bad.csv row 1"]),
        ("bad.json", b'[{"prompt": "row 7"}, ', "bad.json row 2: is cut off", ["bad.json row 2"]),
    ],
)
def test_what_is_wrong_with_one_of_several_files_names_it(
    tmp_path: Path, name: str, data: bytes, reason: str, fields: list[str]
) -> None:
    good, bad = write(tmp_path, b'{"prompt": "a"}\n' * 3), tmp_path / name
    bad.write_bytes(data)
    rows = FileRows([DataFile(good, "good"), DataFile(bad, name)])

    with pytest.raises(InvalidArgumentError) as caught:
        list(parse_rows(rows))

    error = rows.explain(caught.value)
    assert str(error).startswith(reason)
    assert [violation.field for violation in error.violations] == fields


def test_csv_cells_are_text_but_for_numbers_lists_and_messages(tmp_path: Path) -> None:
    messages = json.dumps([user]).replace('"', '""')
    rows = [
        "\ufeff prompt ,chosen,margin,scores",
        '"[INST] a, ""b""\r\nc",,-1e-3,"[1, 2]"',
        "",
        f'42,"{messages}",,',
        "",
    ]
    path = write(tmp_path, "\r\n".join(rows).encode())

    assert list(read_rows(path, "csv")) == [
        (1, {"prompt": '[INST] a, "b"\r\nc', "margin": -0.001, "scores": [1, 2]}),
        (2, {"prompt": "42", "chosen": [user]}),
    ]


@pytest.mark.parametrize(
    ("column", "expanded"),
    [
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
        (pa.array(["a", None, "b" * 50], pa.string_view()), ["a", None, "b" * 50]),
        (pa.array([["a"], None, []], pa.large_list(pa.large_string())), [["a"], None, []]),
        (pa.array([["a", "b"], None, ["c", None]], pa.list_(pa.string(), 2)), [["a", "b"], None, ["c", None]]),
        (pa.array([{"x": None}, None, {"x": "y"}], pa.struct({"x": pa.string()})), [{"x": None}, None, {"x": "y"}]),
        (pa.array(['{"a": 1}', None, "[]"], pa.json_()), ['{"a": 1}', None, "[]"]),
        (pa.nulls(3), [None] * 3),
    ],
)
def test_every_arrow_type_that_may_hold_rows_is_read(tmp_path: Path, column: pa.Array, expanded: list[Any]) -> None:
    table = pa.table({"prompt": pa.chunked_array([column] * 2)}).slice(1, 4)
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)

    assert [row["prompt"] for _, row in read_rows(path)] == [*expanded[1:], *expanded[:2]]


_FAR = 2**62
_TIMES = [
    *(
        pa.array([0, _FAR, -_FAR], pa.timestamp(unit, zone))
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC")
    ),
    *(pa.array([0, _FAR, -_FAR], pa.duration(unit)) for unit in ("s", "ns")),
    pa.array([0, 2**31 - 1, -(2**31)], pa.int32()).cast(pa.date32()),
    pa.array([0, 10**10 * 86_400_000, 0], pa.int64()).view(pa.date64()),
]


@pytest.mark.parametrize("times", _TIMES, ids=lambda times: str(times.type))
def test_times_that_python_has_no_value_for_are_in_the_way_of_no_row(tmp_path: Path, times: pa.Array) -> None:
    nested = pa.StructArray.from_arrays([times, pa.FixedSizeListArray.from_arrays(times, 1)], names=["at", "each"])
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], times)
    table = pa.table({"prompt": ["a", "b", "c"], "at": times, "nested": nested, "lists": lists})
    paths = [tmp_path / "rows.arrow"]
    with pa.ipc.new_file(paths[0], table.schema) as writer:
        writer.write_table(table)
    if times.type not in (pa.timestamp("s"), pa.timestamp("s", "UTC"), pa.date64()):  # Parquet has none of these
        paths.append(tmp_path / "rows.parquet")
        pq.write_table(table, paths[1])

    for path in paths:
        assert [row["prompt"] for _, row in read_rows(path)] == ["a", "b", "c"]


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


def test_a_large_parquet_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b" * (MAX_ROW_BYTES + 1), "c"]}), path)

    found = outcomes(read_rows(path, "parquet"))

    assert found == [
        (1, {"prompt": "a"}),
        ("row 2", "is larger than 1048576 bytes (max_row_bytes): shorten or drop it"),
        (3, {"prompt": "c"}),
    ]


def test_a_parquet_page_too_large_to_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [f"{index:0>1000}" for index in range(100)]}), path, use_dictionary=False)

    with pytest.raises(InvalidArgumentError, match=r"row group 0 has a page of \d+ bytes, at most 50000"):
        list(read_rows(path, limits=ReadLimits(max_page_bytes=50_000)))


def test_unreadable_and_unusable_rows_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"prompt": "a"}\nnot json\n{"prompt": 3}\n')

    with pytest.raises(InvalidArgumentError) as caught:
        list(parse_rows(read_rows(path, "jsonl")))

    assert [violation.field for violation in caught.value.violations] == ["row 2", "row 3.prompt"]


def test_an_unknown_format_is_refused_by_name() -> None:
    assert parse_format("parquet") == "parquet"
    with pytest.raises(InvalidArgumentError, match="jsonl, json, parquet, arrow, csv, got 'xml'"):
        parse_format("xml")
    assert parse_format("") is None
