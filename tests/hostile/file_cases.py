"""Files that must be refused as a whole: too large, cut, without rows; JSON arrays, CSV, compressed files."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, product

import pyarrow as pa
from backports import zstd

from tests.hostile.case import ASSISTANT, CHAT, GOOD, GOOD_LINE, KIB, MIB, Case
from tests.hostile.row_cases import line_alone
from tests.hostile.table_cases import arrow, parquet

# ---- sizes


def size_cases() -> Iterator[Case]:
    """Rows, fields and columns past their limits, in every format that is text."""
    too_large = r"is larger than 1048576 bytes \(max_row_bytes\)"
    for name, size_bytes in {"1 MiB": MIB, "100 MB": 100_000_000}.items():
        texts = {
            "line": ("rows.jsonl", large_row),
            "element": ("rows.json", large_element),
            "cell": ("rows.csv", large_cell),
        }
        for what, (file_name, make) in texts.items():
            yield Case(f"size: a {what} of {name}", file_name, partial(make, size_bytes), too_large, "row 1")
        field = "row 1.prompt" if size_bytes == MIB else None
        for what, make_table in {"parquet": large_parquet, "arrow": large_arrow}.items():
            make_value = partial(make_table, size_bytes)
            yield Case(f"size: a value of {name}, {what}", f"rows.{what}", make_value, r"max_(field|page)_bytes", field)
    wide = "x" * (512 * KIB + 1)
    field_reason = r"is larger than 524288 bytes \(max_field_bytes\)"
    yield line_alone("size: a field in a line", GOOD | {"chosen": wide}, "row 1.chosen", field_reason)
    characters = json.dumps(GOOD | {"chosen": "ä" * 262145}, ensure_ascii=False).encode()
    yield Case("size: a field of wide characters", "rows.jsonl", lambda: characters, field_reason, "row 1.chosen")
    messages = [ASSISTANT | {"content": "x" * 1000}] * 600
    yield line_alone("size: a field of messages", CHAT | {"chosen": messages}, "row 1.chosen", field_reason)
    yield Case("size: a field in CSV", "rows.csv", lambda: b"prompt\n" + wide.encode(), field_reason, "row 1.prompt")
    table = pa.table({"prompt": [wide]})
    yield Case("size: a field in Parquet", "rows.parquet", lambda: parquet(table), field_reason, "row 1.prompt")
    yield Case("size: a field in Arrow", "rows.arrow", lambda: arrow(table), field_reason, "row 1.prompt")
    many = {f"c{number}": 0 for number in range(100_000)}
    reason = r"at most 1000 are read \(max_columns\)|larger than 1048576 bytes"
    yield line_alone("columns: 1001 in a line", {f"c{number}": 0 for number in range(1001)}, "row 1", reason)
    yield line_alone("columns: 10^5 in a line", many, "row 1", reason)
    yield Case("columns: 10^5 in an array", "rows.json", lambda: json.dumps([many]).encode(), reason, "row 1")
    header = ",".join(many).encode() + b"\n"
    yield Case("columns: 10^5 in CSV", "rows.csv", lambda: header, reason)
    wide_table = pa.table({name: [1] for name in list(many)[:5000]})
    yield Case("columns: 5000 in Parquet", "rows.parquet", lambda: parquet(wide_table), reason)
    yield Case("columns: 5000 in Arrow", "rows.arrow", lambda: arrow(wide_table), reason)


def pieces(size_bytes: int) -> Iterator[bytes]:
    """So many bytes of text, a piece at a time."""
    while size_bytes > 0:
        yield b"a" * min(size_bytes, MIB)
        size_bytes -= MIB


def large_row(size_bytes: int) -> Iterator[bytes]:
    """A JSON object with a long text."""
    yield b'{"prompt": "'
    yield from pieces(size_bytes)
    yield b'"}'


def large_element(size_bytes: int) -> Iterator[bytes]:
    """The same in an array."""
    return chain([b"["], large_row(size_bytes), [b"]"])


def large_cell(size_bytes: int) -> Iterator[bytes]:
    """A long text in CSV."""
    return chain([b'prompt\n"'], pieces(size_bytes), [b'"\n'])


def large_parquet(size_bytes: int) -> bytes:
    """A long text in Parquet."""
    table = pa.table({"prompt": ["a" * size_bytes]})
    return parquet(table, use_dictionary=False, write_statistics=False)


def large_arrow(size_bytes: int) -> bytes:
    """A long text in Arrow."""
    return arrow(pa.table({"prompt": ["a" * size_bytes]}))


# ---- JSON arrays


def array_cases() -> Iterator[Case]:
    """Arrays whose elements cannot be told from one another, or that are none."""
    row = json.dumps(GOOD)
    broken: dict[str, tuple[str, str, str | None]] = {
        "cut off behind a row": (f"[{row}", "is cut off", "row 1"),
        "cut off behind a comma": (f"[{row},", "is cut off", "row 2"),
        "cut off in a row": (f"[{row}, " + '{"prompt": "a', "is cut off", "row 2"),
        "cut off at once": ("[", "is cut off", "row 1"),
        "comma at the end": (f"[{row},]", "a comma has nothing", "row 2"),
        "comma at the start": (f"[,{row}]", "a comma has nothing", "row 1"),
        "two commas": (f"[{row},,{row}]", "a comma has nothing", "row 2"),
        "no comma": (f"[{row}{row}]", "is not JSON: Extra data", "row 1"),
        "wrong bracket": ("[{]", "closes nothing", "row 1"),
        "wrong bracket at the end": (f"[{row}}}", "closes nothing", "row 1"),
        "crossed brackets": ('[{"a": [}]]', "closes nothing", "row 1"),
        "something after": (f"[{row}] x", "after the array", None),
        "another array after": (f"[{row}]\n[{row}]", "after the array", None),
        "NUL after": (f"[{row}]\0", "after the array", None),
        "a number": (f"[{row}, 5]", "must be an object", "row 2"),
        "null": (f"[null, {row}]", "must be an object", "row 1"),
        "a key twice": (f'[{row}, {{"prompt": "a", "prompt": "b"}}]', "twice", "row 2"),
        "a string that never ends": ('[{"prompt": "\\"', "is cut off", "row 1"),
        "escaped quotes": ('["\\\\\\"]', "is cut off", "row 1"),
        "data with more beside": (f'{{"data": [{row}], "version": 1}}', 'fields beside "data"', None),
        "data that is cut off": (f'{{"data": [{row}]', 'fields beside "data"', None),
        "data within data": (f'{{"data": {{"data": [{row}]}}}}', "no column that says what it is", "row 1"),
    }
    for name, (text, reason, field) in broken.items():
        yield Case(f"array: {name}", "rows.json", lambda text=text: text.encode(), reason, field)
    deep = f"[{row}, " + "[" * 10_000 + "]" * 10_000 + "]"
    yield Case("array: 10000 deep", "rows.json", lambda: deep.encode(), "deeper than 32", "row 2")
    yield Case("array: 10000 open", "rows.json", lambda: b"[" * 10_000, "is cut off", "row 1")
    blank = lambda: chain([b"["], (b" " * MIB for _ in range(40)))  # noqa: E731
    yield Case("array: 40 MiB of nothing", "rows.json", blank, "larger than 1048576 bytes", "row 1")
    pretty = json.dumps(GOOD, indent=2).encode()
    yield Case("array: a single object over lines", "rows.json", lambda: pretty, "is not JSON", "row 1")


# ---- CSV


def csv_cases() -> Iterator[Case]:
    """Tables without a header, with rows of other lengths, or with quotes left open."""
    head = "prompt,chosen,rejected,margin\n"
    good = "1+1?,2,3,0.5\n"
    broken: dict[str, tuple[str | bytes, str, str | None]] = {
        "no header but blank cells": (" , ,\na,b,c\n", "has no header", None),
        "an empty first line": ("\n" + head + good, "has no header", None),
        "a column twice": ("prompt,prompt\na,b\n", "the column 'prompt' twice", None),
        "a column twice but for spaces": ("prompt, prompt\na,b\n", "the column 'prompt' twice", None),
        "a short row": (head + good + "a,b\n", "has 2 cells, the header has 4", "row 2"),
        "a long row": (head + good + "a,b,c,1,e\n", "has 5 cells", "row 2"),
        "commas without quotes": (head + "a, or b,c,d,1\n", "quote cells that hold commas", "row 1"),
        "semicolons": ("prompt;chosen;rejected\na;b;c\n", "no column that says what it is", "row 1"),
        "tabs": ("prompt\tchosen\na\tb\n", "no column that says what it is", "row 1"),
        "an open quote": (head + good + '"a,b,c,1\n' + good, "is not CSV", "row 2"),
        "text behind a quote": (head + '"a"b,c,d,1\n', "is not CSV", "row 1"),
        "an open quote in the header": ('"prompt,chosen\na,b\n', "is not CSV", "header"),
        "bad UTF-8": (head.encode() + b"a,\xff,c,1\n", "is not UTF-8", "row 1"),
        "bad UTF-8 in the header": (b"prompt,\xff\na,b\n", "is not UTF-8", "header"),
        "UTF-16": ((head + good).encode("utf-16"), "is UTF-16", None),
        "a NUL": (head + "a\0,b,c,1\n", "NUL", "row 1*"),
        "carriage returns alone": ((head + good).replace("\n", "\r"), ".", "*"),
        "a number that is none": (head + "a,b,c,high\n", "must be a number, got 'high'", "row 1.margin"),
        "a number with a comma": (head + 'a,b,c,"0,5"\n', "must be a number", "row 1.margin"),
        "a number with underscores": (head + "a,b,c,1_0\n", "must be a number", "row 1.margin"),
        "NaN": (head + "a,b,c,nan\n", "must be finite", "row 1.margin"),
        "infinity": (head + "a,b,c,-inf\n", "must be finite", "row 1.margin"),
        "messages as Python writes them": (head + "\"[{'role': 'user'}]\",b,c,1\n", "is not JSON", "row 1.prompt"),
        "messages that are cut off": (head + '"[{""role"": ""user""",b,c,1\n', "is not JSON", "row 1.prompt"),
        "scores that are no list": ("prompt,responses,scores\na,b,1\n", "is not JSON", "row 1.responses"),
        "only spaces": (head + "a, ,c,1\n", "is empty", "row 1.chosen"),
    }
    for name, (data, reason, field) in broken.items():
        raw = data if isinstance(data, bytes) else data.encode()
        yield Case(f"CSV: {name}", "rows.csv", lambda raw=raw: raw, reason, field)


# ---- compression


def compression_cases() -> Iterator[Case]:
    """Bombs, and what is not whole."""
    packers: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
        "gzip": (".gz", gzip.compress),
        "zstd": (".zst", pack_zstd),
    }
    payloads = {
        "spaces": (b" " * MIB, "rows.jsonl"),
        "blank lines": ((b" " * 1023 + b"\n") * 1024, "rows.jsonl"),
        "letters": (b"a" * MIB, "rows.json"),
        "good rows": (json.dumps(GOOD | {"prompt": "a" * 16000}).encode().ljust(16383) + b"\n", "rows.jsonl"),
        "cells": (b"a,b\n" * 262144, "rows.csv"),
    }
    for (method, (ending, _)), (name, (block, file_name)) in product(packers.items(), payloads.items()):
        yield Case(
            f"bombs: {name} in {method}",
            file_name + ending,
            lambda method=method, block=block, name=name: bomb(method, block, first=b"[" if name == "letters" else b""),
            r"times its size \(max_compression_ratio\)|is larger than 1048576 bytes|cells|no column that says",
            "*",
        )
    starts = {"parquet": b"PAR1", "arrow": b"\xff\xff\xff\xff"}
    for (method, (ending, _)), (name, start) in product(packers.items(), starts.items()):
        yield Case(
            f"bombs: {name} in {method}",
            f"rows.{name}{ending}",
            lambda method=method, start=start: bomb(method, bytes(MIB), first=start),
            r"max_compression_ratio",
        )
    noise = json.dumps([GOOD | {"prompt": f"{number * 2654435761 % 2**32:x}"} for number in range(5000)]).encode()
    for method, (ending, pack) in packers.items():
        whole = pack(noise)
        damaged = f"is not whole {method} data"
        for share in (0.0, 0.1, 0.5, 0.9, 0.9999):
            cut = whole[: max(6, int(len(whole) * share))]
            yield Case(f"{method}: cut after {share:.0%}", f"rows.json{ending}", lambda cut=cut: cut, damaged)
        middle = len(whole) // 2
        changed = whole[:middle] + bytes(64) + whole[middle + 64 :]
        yield Case(f"{method}: changed", f"rows.json{ending}", lambda changed=changed: changed, ".", "*")
        yield Case(
            f"{method}: something after",
            f"rows.json{ending}",
            lambda whole=whole: whole + b"something else",
            f"{damaged}|after the array",
        )
        twice = pack(whole)
        yield Case(f"{method}: twice", f"rows.json{ending}{ending}", lambda twice=twice: twice, ".", "*")
    wrong_sum = bytearray(gzip.compress(noise))
    wrong_sum[-6] ^= 255
    yield Case("gzip: another checksum", "rows.json.gz", lambda: bytes(wrong_sum), "is not whole gzip data")
    yield Case("zstd: a window of 1 GiB", "rows.jsonl.zst", wide_window, "a window of more than 32 MiB")
    foreign = {
        "zip": b"PK\x03\x04",
        "bzip2": b"BZh91AY",
        "xz": b"\xfd7zXZ\0",
        "7z": b"7z\xbc\xaf",
        "LZ4": b"\x04\x22\x4d\x18",
    }
    for name, magic in foreign.items():
        yield Case(f"archives: {name}", f"rows.{name}", lambda magic=magic: magic + bytes(100), name)


def bomb(method: str, block: bytes, *, first: bytes) -> bytes:
    """100 MiB of a block, compressed as far as it goes."""
    if method == "gzip":
        file = io.BytesIO()
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as stream:
            stream.write(first)
            for _ in range(100 * MIB // len(block)):
                stream.write(block)
        return file.getvalue()
    packer = zstd.ZstdCompressor()
    return b"".join(
        [packer.compress(first), *(packer.compress(block) for _ in range(100 * MIB // len(block))), packer.flush()]
    )


def pack_zstd(data: bytes) -> bytes:
    """As the command line tool does it: with a checksum."""
    return zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})


def wide_window() -> bytes:
    """A frame that asks for a window of 1 GiB."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    return packer.compress(GOOD_LINE) + packer.flush()


# ---- nothing


def empty_cases() -> Iterator[Case]:
    """Files without a row."""
    schema = pa.schema({"prompt": pa.string()})
    none = schema.empty_table()
    nothing = {
        "rows.jsonl": b"",
        "blank.jsonl": b"\n \r\n\t\n",
        "bom.jsonl": b"\xef\xbb\xbf",
        "rows.json": b"[]",
        "blank.json": b" [ \n ] ",
        "data.json": b'{"data": []}',
        "rows.csv": b"prompt\n",
        "blank.csv": b"prompt\n\n\r\n",
        "rows.parquet": parquet(none),
        "rows.arrow": arrow(none),
        "file.arrow": arrow(none, pa.ipc.new_file),
        "rows.jsonl.gz": gzip.compress(b""),
        "rows.jsonl.zst": zstd.compress(b""),
        "rows.json.gz": gzip.compress(b"[]"),
    }
    for name, data in nothing.items():
        yield Case(f"no rows: {name}", name, lambda data=data: data, "has no rows")
    yield Case("no rows: nothing in CSV", "none.csv", lambda: b"", "has no header")
    yield Case("no rows: nothing in Parquet", "none.parquet", lambda: b"", "not readable Parquet|no rows")
    yield Case("no rows: nothing in a file of no format", "none.bin", lambda: b"", "name its format")
    yield Case("no rows: text of no format", "notes.txt", lambda: b"hello", "name its format")
