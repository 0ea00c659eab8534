"""Streams of stored objects that are read in every way there is, and are verified where they end."""

import hashlib
from pathlib import Path

import pytest

from madpo.errors import CorruptObjectError
from madpo.storage.content_names import open_verified
from madpo.storage.local import LocalStore

DATA = b"one\ntwo\n" * 300_000
READS = {
    "whole": lambda stream: stream.read(),
    "in chunks": lambda stream: b"".join(iter(lambda: stream.read(1 << 18), b"")),
    "by lines": b"".join,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_stream_is_read_in_any_way_and_damage_is_found_at_its_end(tmp_path: Path, read) -> None:
    store = LocalStore(tmp_path)
    store.put("a", DATA)
    store.put("damaged", DATA[:-1] + b"x")
    sha256 = hashlib.sha256(DATA).hexdigest()

    for key, expected in (("a", sha256), ("a", None), ("damaged", None)):
        with open_verified(store, key, expected) as stream:
            assert len(read(stream)) == len(DATA)
    with (
        open_verified(store, "damaged", sha256) as stream,
        pytest.raises(CorruptObjectError, match="damaged is damaged"),
    ):
        read(stream)
