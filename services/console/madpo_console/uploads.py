"""Files on their way from a browser or a program to the gateway: spooled on disk, gone with the request."""

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile

from madpo.errors import InvalidArgumentError
from madpo_console.callers import Asking

_UNFIT = re.compile(r"[^\w.\- ]+")
_MOST_NAME_BYTES = 120
_MOST_FIELDS = 20


async def uploaded(request: Request, asking: Asking) -> AsyncIterator[FormData]:
    """The form with a file that a request brings; nothing of it is read before it is known who asks."""
    async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
        yield form


def takes_file(**fields: str) -> dict[str, Any]:
    """For the document of the API, which cannot see what is read by hand: a file, and other fields, described."""
    properties: dict[str, Any] = {name: {"type": "string", "description": what} for name, what in fields.items()}
    properties["file"] = {"type": "string", "format": "binary"}
    schema = {"type": "object", "required": sorted(properties), "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


Uploaded = Annotated[FormData, Depends(uploaded)]
"""Parameter of calls that take a file."""


@contextmanager
def spooled(form: FormData, scratch: Path) -> Iterator[Path]:
    """The file of a form under its own name, by whose ending its format is told; removed afterwards.

    Raises:
        InvalidArgumentError: There is none.
    """
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidArgumentError.in_field("file", "give a file, as multipart/form-data")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="upload-") as directory:
        path = Path(directory) / plain_name(file.filename or "upload.jsonl")
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy, 1 << 20)
        yield path


def plain_name(filename: str) -> str:
    """A name without folders and odd characters, its ending kept."""
    name = _UNFIT.sub("_", filename.replace("\\", "/").rsplit("/", 1)[-1]).strip(". ")
    return name.encode()[-_MOST_NAME_BYTES:].decode(errors="ignore").lstrip(". ") or "upload"
