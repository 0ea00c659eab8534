"""Files on their way from a browser or a program to the gateway: spooled on disk, gone with the request."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_UNFIT = re.compile(r"[^\w.\- ]+")
_MOST_NAME = 120


@contextmanager
def spooled(content: BinaryIO, filename: str, scratch: Path) -> Iterator[Path]:
    """The content as a file of its own name, by whose ending its format is told; removed afterwards."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="upload-") as directory:
        path = Path(directory) / plain_name(filename)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        yield path


def plain_name(filename: str) -> str:
    """A name without folders and odd characters, its ending kept."""
    name = _UNFIT.sub("_", filename.replace("\\", "/").rsplit("/", 1)[-1]).strip(". ")
    return name[-_MOST_NAME:].lstrip(". ") or "upload"
