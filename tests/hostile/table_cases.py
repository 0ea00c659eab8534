"""Parquet and Arrow files that must be refused."""

import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import Case, fixed

# ---- Parquet


def parquet(table: pa.Table, **options: Any) -> bytes:
    """The table as a file."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def pairs_table(count: int = 2000) -> pa.Table:
    """Good pairs."""
    numbers = range(count)
    return pa.table(
        {
            "prompt": [f"{number}+1?" for number in numbers],
            "chosen": [str(number + 1) for number in numbers],
            "rejected": [str(number) + " is it" for number in numbers],
        }
    )


def parquet_cases() -> Iterator[Case]:
    """Files that are cut, changed, lie about themselves, or hold far more than they weigh."""
    whole = parquet(pairs_table())
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    damaged = "not readable Parquet"

    def case(name: str, make: Callable[[], bytes], reason: str = damaged, field: str | None = None) -> Case:
        return Case(f"Parquet: {name}", "rows.parquet", make, reason, field)

    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        yield case(f"cut after {share:.0%}", lambda share=share: whole[: int(len(whole) * share)])
    yield case("cut in its last bytes", lambda: whole[:-1])
    yield case("the magic alone", lambda: b"PAR1")
    yield case("the magic twice", lambda: b"PAR1PAR1")
    yield case("zeros", lambda: b"PAR1" + bytes(1000) + b"PAR1")
    yield case("encrypted", lambda: whole[:-4] + b"PARE")
    for name, length in {"nothing": 0, "too little": 10, "too much": len(whole) * 2, "4 GiB": 2**32 - 1}.items():
        lie = struct.pack("<I", length)
        yield case(f"a footer of {name}", lambda lie=lie: whole[:-8] + lie + whole[-4:])
    footer_start = len(whole) - 8 - footer_bytes
    for share in (0.0, 0.1, 0.2, 0.3):
        at = footer_start + int(footer_bytes * share)
        yield case(
            f"a footer of zeros from {share:.0%}", lambda at=at: whole[:at] + bytes(len(whole) - 8 - at) + whole[-8:]
        )
    for start, end in ((4, 40), (4, 200), (100, 4000), (footer_start // 2, footer_start)):
        yield case(f"zeros from {start} to {end}", lambda start=start, end=end: zeroed(whole, start, end))
    yield case("columns of another file", lambda: b"PAR1" + bytes(footer_start - 4) + whole[footer_start:])
    moved = parquet(pairs_table(), compression="none")
    yield case("a footer that was moved", lambda: moved[:4] + b"x" * 64 + moved[4:])
    bad_text = pa.array([b"fine", b"\xff\xfe"]).cast(pa.string(), safe=False)
    yield case("text that is not UTF-8", lambda: parquet(pa.table({"prompt": bad_text})), "(?i)utf")
    kinds = {
        "maps": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
        "fixed bytes": pa.array([b"ab"], pa.binary(2)),
    }
    for name, column in kinds.items():
        table = pa.table({"prompt": ["a"], "x": column})
        yield case(f"a column of {name}", lambda table=table: parquet(table), "Arrow type .*which no form")
    binary = pa.table({"prompt": [b"a"]})
    yield case("bytes for text", lambda: parquet(binary), "must be text", "row 1.prompt")
    images = pa.table({"prompt": ["a"], "images": [[{"bytes": b"\x89PNG", "path": "../a.png"}]]})
    yield case("images", lambda: parquet(images), "holds images", "row 1.images")
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, ["prompt", "prompt"])
    yield case("a column twice", lambda: parquet(twice), "the column 'prompt' twice")
    unread = pa.table({"question_id": [1]})
    yield case("no column of ours", lambda: parquet(unread), "no column that says what it is", "row 1")
    nan = pairs_table(2).append_column("margin", pa.array([0.5, float("nan")]))
    yield case("a margin that is NaN", lambda: parquet(nan), "must be finite", "row 2.margin")
    infinite = pairs_table(2).append_column("margin", pa.array([float("inf"), 0.5]))
    yield case("a margin that is infinite", lambda: parquet(infinite), "must be finite", "row 1.margin")
    yield case("a page of 100 MB of one letter", lambda: page_bomb("zstd"), r"max_page_bytes")
    yield case("a page of 100 MB, gzip", lambda: page_bomb("gzip"), r"max_page_bytes")
    yield case("a page whose footer lies", lying_bomb, r"max_page_bytes|not readable Parquet")
    large = r"is larger than 1048576 bytes|\(max_page_bytes\)|list elements"
    yield case("one value of 30 MB, referred to 10000 times", dictionary_bomb, large, "*")
    yield case("one value in a list 100000 times", list_bomb, large, "row 1*")
    yield case("a list of 5 million nulls", lambda: null_list(5_000_000), large, "*")
    yield case("a list of 3 million nulls", lambda: null_list(3_000_000), large, "row 1*")
    deep: Any = "a"
    for _ in range(40):
        deep = [deep]
    yield case("40 lists deep", lambda: parquet(pa.table({"prompt": [deep]})), "nested too deep|deeper")


def zeroed(data: bytes, start: int, end: int) -> bytes:
    """The same, but for zeros in one place."""
    return data[:start] + bytes(end - start) + data[end:]


def page_bomb(compression: str) -> bytes:
    """A page that is small on disk and large in memory."""
    return parquet(pa.table({"prompt": ["a" * 1_000_000] * 100}), compression=compression, use_dictionary=False)


def lying_bomb() -> bytes:
    """The same, with a footer that gives the sizes of a small one: each number is replaced by one as long."""
    bomb = page_bomb("zstd")
    size_bytes = pq.ParquetFile(io.BytesIO(bomb)).metadata.row_group(0).column(0).total_uncompressed_size
    true, lie = zigzag(size_bytes), zigzag(2_100_000)
    footer_start = len(bomb) - 8 - int.from_bytes(bomb[-8:-4], "little")
    footer = bomb[footer_start:]
    assert len(true) == len(lie)
    assert true in footer
    return bomb[:footer_start] + footer.replace(true, lie)


def zigzag(number: int) -> bytes:
    """As Thrift writes it."""
    value, encoded = number * 2, bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def dictionary_bomb() -> bytes:
    """300 GB of text in some kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["a" * 30_000_000]))
    return parquet(pa.table({"prompt": column}), dictionary_pagesize_limit=60_000_000)


def list_bomb() -> bytes:
    """A row of 100,000 times 1 MB."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["a" * 1_000_000]))
    column = pa.ListArray.from_arrays(pa.array([0, 100_000], pa.int32()), values)
    return parquet(pa.table({"prompt": column}), dictionary_pagesize_limit=4_000_000)


def null_list(count: int) -> bytes:
    """A row with a list of nulls."""
    column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.string()))
    return parquet(pa.table({"prompt": column}))


# ---- Arrow


def arrow(table: pa.Table, make: Any = pa.ipc.new_stream, **options: Any) -> bytes:
    """The table as a stream, or as a file."""
    file = io.BytesIO()
    with make(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def arrow_cases() -> Iterator[Case]:
    """Streams and files that are cut, changed, lie about themselves, or hold far more than they weigh."""
    table, damaged = pairs_table(), "not readable Arrow"
    kinds = {"stream": arrow(table), "file": arrow(table, pa.ipc.new_file)}

    def case(name: str, make: Callable[[], bytes], reason: str = damaged, field: str | None = None) -> Case:
        return Case(f"Arrow: {name}", "rows.arrow", make, reason, field)

    for name, whole in kinds.items():
        start = 8 if name == "file" else 0
        for share in (0.002, 0.1, 0.5, 0.9):
            yield case(
                f"{name} cut after {share:.0%}", lambda whole=whole, share=share: whole[: int(len(whole) * share)]
            )
        lies = {"negative": -1, "2 GiB": 2**31 - 1, "12": 12}
        for what, length in lies.items():
            lie = struct.pack("<i", length)
            yield case(
                f"{name} with a schema of {what}",
                lambda whole=whole, lie=lie, start=start: whole[: start + 4] + lie + whole[start + 8 :],
            )
        yield case(f"{name} with a schema of zeros", fixed(zeroed(whole, start + 8, start + 108)))
        batch_at = whole.index(b"\xff\xff\xff\xff", start + 8)
        yield case(f"{name} with a batch of zeros", fixed(zeroed(whole, batch_at + 8, batch_at + 108)))
        yield case(
            f"{name} with offsets of ones",
            lambda whole=whole, at=batch_at: whole[: at + 600] + b"\xff" * 4000 + whole[at + 4600 :],
        )
        # What is left would be a shorter file in good order.
        last_batch_at = whole.rindex(b"\xff\xff\xff\xff", start, whole.rindex(b"\xff\xff\xff\xff\0\0\0\0"))
        yield case(f"{name} cut before its last batch", lambda whole=whole, at=last_batch_at: whole[:at], "cut off")
        end_at = whole.rindex(b"\xff\xff\xff\xff\0\0\0\0")
        yield case(f"{name} cut behind its last batch", lambda whole=whole, at=end_at: whole[:at], "cut off")
    footer_at = kinds["file"].rindex(b"\xff\xff\xff\xff\0\0\0\0") + 8
    for what, end in {"without a footer": footer_at, "cut in its footer": footer_at + 40, "cut by a byte": -1}.items():
        yield case(f"file {what}", lambda end=end: kinds["file"][:end], "does not end like an Arrow file")
    yield case(
        "of before 2019", lambda: arrow(table, use_legacy_format=True), "is no Parquet, Arrow or JSON|not readable"
    )
    text = pa.array([b"fine", b"\xff\xfe"]).cast(pa.string(), safe=False)
    yield case("text that is not UTF-8", lambda: arrow(pa.table({"prompt": text})), "(?i)utf")
    zeros = pa.table({"prompt": ["a" * 1_000_000] * 100})
    for codec in ("lz4", "zstd"):
        yield case(f"100 MB in a batch, {codec}", lambda codec=codec: arrow(zeros, compression=codec), "max_page_bytes")
    yield case("100 MB in a batch", lambda: arrow(zeros), "max_page_bytes")
    bomb = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["a" * 2_000_000]))
    large = "is larger than 1048576 bytes"
    yield case("one value of 2 MB, referred to 1000 times", lambda: arrow(pa.table({"prompt": bomb})), large, "row 1")
    nulls = pa.ListArray.from_arrays(pa.array([0, 1_000_000_000], pa.int32()), pa.nulls(1_000_000_000))
    yield case("a list of 10^9 nulls", lambda: arrow(pa.table({"prompt": nulls})), large, "row 1")
    rows = pa.table({"prompt": pa.nulls(1_000_000_000)})
    yield case("10^9 rows of null", lambda: arrow(rows), "no column that says what it is", "row 1")
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array(["a"])])
    yield case("a union", lambda: arrow(pa.table({"prompt": union})), "Arrow type .*which no form")
    runs = pa.RunEndEncodedArray.from_arrays([1_000_000_000], ["a"])
    yield case("a run of 10^9", lambda: arrow(pa.table({"prompt": runs})), "Arrow type .*which no form")
    view = pa.array([["a"]], pa.list_view(pa.string()))
    yield case("a view of a list", lambda: arrow(pa.table({"prompt": view})), "Arrow type .*which no form")
    nan = pairs_table(2).append_column("margin", pa.array([0.5, float("nan")]))
    yield case("a margin that is NaN", lambda: arrow(nan), "must be finite", "row 2.margin")
