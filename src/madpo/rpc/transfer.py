"""Files on their way over a stream: read in chunks, written whole and verified or not at all."""

import asyncio
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from madpo.errors import CorruptObjectError, FailedPreconditionError, InvalidArgumentError
from madpo.model_files.uploads import files_to_upload
from madpo.rpc.channel import CHUNK_BYTES
from madpo.types import FileEntry

OnBytes = Callable[[int], None]
"""Told how many more bytes went over the wire."""


async def read_chunks(path: Path, on_bytes: OnBytes | None = None, *, start: int = 0) -> AsyncGenerator[bytes]:
    """The file from `start` on in chunks of `CHUNK_BYTES`. Raises InvalidArgumentError when it cannot be read."""
    with _open(path) as file:
        file.seek(start)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
            if on_bytes is not None:
                on_bytes(len(chunk))


@dataclass(frozen=True, slots=True)
class OutgoingFile:
    """A file to be sent. The name is for messages, and a hint at the format."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OutgoingFiles:
    """Files whose bytes are sent one after the other."""

    files: tuple[OutgoingFile, ...]
    sha256: str
    """Of all their bytes."""
    reading: str = ""
    """How they are to be read: another reading of the same files is another upload."""

    @classmethod
    def describe(cls, paths: Sequence[Path], *, reading: str = "") -> Self:
        """Read the files once, in this order. Raises InvalidArgumentError when one cannot be read."""
        names = [path.name for path in paths]
        if len(set(names)) < len(names):
            names = [path.as_posix().lstrip("./") for path in paths]
        digest, files = hashlib.sha256(), []
        for path, name in zip(paths, names, strict=True):
            size_bytes = 0
            with _open(path) as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size_bytes += len(chunk)
            files.append(OutgoingFile(path, name, size_bytes))
        return cls(tuple(files), digest.hexdigest(), reading)

    @property
    def upload_id(self) -> str:
        """The same for the same files and reading: who sends them again goes on where the last one stopped."""
        content = [[file.name, file.size_bytes] for file in self.files]
        return hashlib.sha256(json.dumps([content, self.sha256, self.reading]).encode()).hexdigest()[:32]

    async def chunks(self, offset: int) -> AsyncGenerator[bytes]:
        """The bytes from `offset` on. Raises InvalidArgumentError when a file cannot be read, or was cut short."""
        for file in self.files:
            if offset < file.size_bytes:
                async for chunk in read_chunks(file.path, start=offset):
                    yield chunk
            offset = max(0, offset - file.size_bytes)


def describe_model(directory: Path) -> list[FileEntry]:
    """Path, size and digest of every file a model upload sends, in path order.

    Raises:
        InvalidArgumentError: See `files_to_upload`.
    """
    return [_describe(directory / path, path) for path in files_to_upload(directory).taken]


def _describe(path: Path, name: str) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


class IncomingFile:
    """A file being received beside its place; `commit` verifies size and digest and moves it there."""

    def __init__(self, path: Path, entry: FileEntry) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._entry = path, entry
        self._scratch = _beside(path)
        self._file = self._scratch.open("wb")
        self._digest, self._size_bytes = hashlib.sha256(), 0

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self._size_bytes += len(chunk)

    def commit(self) -> None:
        """Put the file in its place. Raises CorruptObjectError, naming the file."""
        self._file.close()
        if self._size_bytes != self._entry.size_bytes:
            got = f"{self._size_bytes} of {self._entry.size_bytes} bytes"
            raise CorruptObjectError(f"{self._entry.path} arrived with {got}; download it again")
        if self._digest.hexdigest() != self._entry.sha256:
            raise CorruptObjectError(f"{self._entry.path} does not match its SHA-256; download it again")
        os.replace(self._scratch, self._path)

    def close(self) -> None:
        """Forget what was not committed."""
        self._file.close()
        self._scratch.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class IncomingDirectory:
    """A directory being received file after file beside its place; `commit` moves it there.

    Raises:
        FailedPreconditionError: The place is taken.
    """

    def __init__(self, directory: Path) -> None:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FailedPreconditionError(f"{directory} exists and is not an empty directory; choose another place")
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._scratch = _beside(directory)
        self._scratch.mkdir()
        self._file: IncomingFile | None = None

    def begin(self, entry: FileEntry) -> None:
        """Commit the file before and start the next one. Raises CorruptObjectError for a path that leads outside."""
        relative = PurePosixPath(entry.path)
        if not relative.parts or relative.is_absolute() or ".." in relative.parts:
            raise CorruptObjectError(f"the gateway sent a file with the path {entry.path!r}")
        self._commit_file()
        self._file = IncomingFile(self._scratch / relative, entry)

    def write(self, chunk: bytes) -> None:
        """Append a chunk to the file begun last."""
        if self._file is None:
            raise CorruptObjectError("the download begins with bytes of no file")
        self._file.write(chunk)

    def commit(self) -> None:
        """Put the directory in its place. Raises CorruptObjectError."""
        self._commit_file()
        os.replace(self._scratch, self._directory)

    def _commit_file(self) -> None:
        if self._file is not None:
            self._file.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")
