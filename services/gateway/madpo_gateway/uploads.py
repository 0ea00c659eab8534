"""Uploads of datasets: files on scratch disk that may outlive their stream, and the gateway.

unfinished/{upload_id}/files/00000     the bytes so far, one file per file
unfinished/{upload_id}/result.json     once stored, for a client that did not get the answer; the files are gone
"""

import asyncio
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prometheus_client import Counter

from madpo.data.file_formats import parse_format
from madpo.data.files.reading import DataFile
from madpo.data.ranking import parse_list_rule
from madpo.data.records import RowReader
from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.storage.files import replacing
from madpo.types import DatasetForm
from madpo.v1 import dataset_service_pb2 as pb
from madpo_gateway.requests import is_plain_path, require_display_name, require_match, violation
from madpo_gateway.row_check import RowCheck
from madpo_gateway.spool import MAX_CHUNK_BYTES, run_blocking
from madpo_gateway.streams import Stream, Streams, TakenOver
from madpo_gateway.turns import TurnsBySize

MAX_FILES = 1000
UPLOAD_ID_PATTERN = r"^[0-9a-f]{32}$"

_WRITTEN_AT_ONCE = 4
"""Chunks: more threads would wait for one disk and one interpreter, and calls behind them."""
_RESULT = "result.json"
_RESULT_TTL_S = 600.0
"""A client that lost the answer asks again within seconds."""


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What a stored upload became."""

    dataset_id: str
    created: bool
    forms: tuple[DatasetForm, ...] = ()
    """What was found in the files."""

    def to_json(self) -> str:
        """To be read again by `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "UploadResult":
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "forms": tuple(DatasetForm(**form) for form in fields["forms"])})


@dataclass(frozen=True, slots=True)
class Announced:
    """The header of an upload, checked."""

    header: pb.UploadDatasetHeader
    files: tuple[tuple[str, int | None], ...]
    """Names and sizes in bytes; None for a single file that is as long as it is."""

    @classmethod
    def of(cls, header: pb.UploadDatasetHeader, *, limit_bytes: int) -> "Announced":
        """Raises InvalidArgumentError; names the field."""
        parse_format(header.format)
        RowReader(header.columns, lists=parse_list_rule(header.lists))
        require_display_name(header.display_name, field="header.display_name")
        if not header.files:
            return cls(header, (("", None),))
        if len(header.files) > MAX_FILES:
            raise violation("header.files", f"must be at most {MAX_FILES}, got {len(header.files)}")
        for index, file in enumerate(header.files):
            _check_name(file.name, field=f"header.files[{index}].name")
            if file.size_bytes < 0:
                raise violation(f"header.files[{index}].size_bytes", f"must not be negative, got {file.size_bytes}")
        total_bytes = sum(file.size_bytes for file in header.files)
        if total_bytes > limit_bytes:
            raise violation(
                "header.files", f"have {total_bytes} bytes, more than max_upload_bytes ({limit_bytes}): split them"
            )
        return cls(header, tuple((file.name, file.size_bytes) for file in header.files))


class Upload:
    """The files of one upload in its directory.

    Args:
        directory: Holds the files; made when missing.
        announced: What they are.
        limit_bytes: Most they may hold together.
    """

    def __init__(self, directory: Path, announced: Announced, *, limit_bytes: int) -> None:
        self.announced, self._limit_bytes = announced, limit_bytes
        self._directory = directory / "files"
        self._directory.mkdir(parents=True, exist_ok=True)
        self._paths = [self._directory / f"{index:05d}" for index in range(len(announced.files))]
        for path in self._paths:
            path.touch()
        self.received_bytes = sum(path.stat().st_size for path in self._paths)
        self._digest: hashlib._Hash | None = None
        """Of the bytes so far; None where some came before this object was made."""
        self.check = RowCheck()

    @property
    def data_files(self) -> list[DataFile]:
        """What is to be read."""
        file_format = parse_format(self.announced.header.format)
        named = zip(self._paths, self.announced.files, strict=True)
        return [DataFile(path, name, file_format) for path, (name, _) in named]

    def rewind(self, offset: int) -> None:
        """Forget the bytes from `offset` on. Raises FailedPreconditionError when there are fewer."""
        if offset > self.received_bytes:
            raise FailedPreconditionError(
                f"the upload has {self.received_bytes} bytes, not {offset}: ask GetUpload and go on from there"
            )
        for path, (start, room) in zip(self._paths, self._places(), strict=True):
            with path.open("r+b") as file:
                file.truncate(max(0, min(offset - start, room)))
        self.received_bytes = offset
        self._digest = hashlib.sha256() if offset == 0 else None

    def append(self, chunk: bytes) -> None:
        """Add bytes to the file they belong to. Raises InvalidArgumentError past a limit."""
        if len(chunk) > MAX_CHUNK_BYTES:
            raise violation("chunk", f"must be at most {MAX_CHUNK_BYTES} bytes, got {len(chunk)}")
        if self._digest is not None:
            self._digest.update(chunk)
        rest = memoryview(chunk)
        for path, (start, room) in zip(self._paths, self._places(), strict=True):
            inside = self.received_bytes - start
            if rest and inside < room:
                part = rest[: room - inside]
                with path.open("ab") as file:
                    file.write(part)
                self.received_bytes += len(part)
                rest = rest[len(part) :]
        if rest:
            limit = "max_upload_bytes" if self.announced.files[-1][1] is None else "announced"
            raise violation("chunk", f"the files are larger than {limit} ({self.received_bytes} bytes)")

    def verify(self, sha256: str) -> None:
        """Raises InvalidArgumentError when the bytes are others than announced."""
        digest = self._digest
        if digest is None:  # the upload went on where another stream had broken off
            digest = hashlib.sha256()
            for chunk in self._chunks():
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            description = f"the bytes received have digest {digest.hexdigest()}, announced was {sha256!r:.70}"
            raise violation("sha256", f"{description}: send them again")

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where each file starts in the upload, and how many bytes it has room for."""
        start = 0
        for _, size_bytes in self.announced.files:
            room = self._limit_bytes if size_bytes is None else size_bytes
            yield start, room
            start += room

    def _chunks(self) -> Iterator[bytes]:
        for path in self._paths:
            with path.open("rb") as file:
                while chunk := file.read(MAX_CHUNK_BYTES):
                    yield chunk


class Uploads:
    """The uploads of a gateway.

    One stream at a time feeds an upload, see `madpo_gateway.streams`: all that send the same at once get the same.

    Args:
        scratch: For uploads that end with their stream.
        unfinished: For those that do not.
        limit_bytes: Most an upload may hold.
        checking: Whose rows are checked now.
        received: Where bytes are counted.
    """

    def __init__(
        self, scratch: Path, unfinished: Path, *, limit_bytes: int, checking: TurnsBySize, received: Counter
    ) -> None:
        self._checking, self._writing = checking, asyncio.Semaphore(_WRITTEN_AT_ONCE)
        self._scratch, self._unfinished = scratch, unfinished
        self._limit_bytes, self._received = limit_bytes, received
        self._streams: Streams[UploadResult] = Streams()
        self._checked: dict[str, Upload] = {}
        """Uploads whose rows are being checked."""

    async def receive(
        self, messages: AsyncIterator[pb.UploadDatasetRequest], store: Callable[[Upload], UploadResult]
    ) -> UploadResult:
        """Take a stream in to its end, then store what came.

        Args:
            messages: Header, chunks, digest.
            store: Reads the files and stores the rows; runs in a worker thread.

        Raises:
            InvalidArgumentError: The stream or a row is not as it must be. Nothing of the upload is left, unless the
                stream only ended early.
            UnavailableError: Another stream took the upload over, and has stopped.
            FailedPreconditionError: The header's offset is beyond what is here.
        """
        first = await anext(messages, pb.UploadDatasetRequest())
        if first.WhichOneof("part") != "header":
            raise violation("header", "must be the first message of an upload")
        header = first.header
        announced = Announced.of(header, limit_bytes=self._limit_bytes)
        if header.upload_id:
            upload_id = require_match(header.upload_id, UPLOAD_ID_PATTERN, field="header.upload_id")
            directory = self._unfinished / upload_id
        else:
            upload_id = uuid.uuid4().hex
            directory = self._scratch / upload_id
        with self._streams.joined(upload_id) as stream:
            try:
                async with stream.turn():
                    upload = await run_blocking(_resume, directory, announced, header.offset, self._limit_bytes)
                digest = await self._fill(upload, messages, stream)
                async with stream.turn():
                    await run_blocking(upload.verify, digest)
                    return await self._finish(upload_id, directory, upload, store, stream)
            except TakenOver:
                return replace(await stream.outcome(messages), created=False)
            except _EndedEarly as error:
                raise violation("sha256", "is missing: the upload ended early") from error
            except InvalidArgumentError:
                with suppress(TakenOver):  # then the files are another's
                    async with stream.turn():
                        await run_blocking(shutil.rmtree, directory, ignore_errors=True)
                raise
            finally:
                if not header.upload_id:
                    await run_blocking(shutil.rmtree, directory, ignore_errors=True)

    async def _finish(
        self,
        upload_id: str,
        directory: Path,
        upload: Upload,
        store: Callable[[Upload], UploadResult],
        stream: Stream[UploadResult],
    ) -> UploadResult:
        """Check and store, once others have been; what comes of it holds for all that sent the same."""
        async with self._checking.turn(upload.received_bytes):
            self._checked[upload_id] = upload
            try:
                result = await upload.check.run(_finish, directory, upload, store)
            except InvalidArgumentError as error:
                await run_blocking(shutil.rmtree, directory, ignore_errors=True)
                stream.end(error)
                raise
            finally:
                del self._checked[upload_id]
        stream.end(result)
        return result

    def checked_rows(self, upload_id: str) -> int:
        """Rows that were checked so far of an upload whose bytes are all here."""
        upload = self._checked.get(upload_id)
        return upload.check.rows if upload is not None else 0

    def received_bytes(self, upload_id: str) -> int:
        """Bytes of an upload that are here."""
        files = self._directory(upload_id) / "files"
        try:
            return sum(path.stat().st_size for path in files.iterdir())
        except FileNotFoundError:
            return 0

    def result(self, upload_id: str) -> UploadResult | None:
        """What an upload became, for some minutes after it did."""
        try:
            return UploadResult.from_json((self._directory(upload_id) / _RESULT).read_text())
        except FileNotFoundError:
            return None

    def expire(self, ttl_s: float) -> int:
        """Remove uploads without a new byte for this long, and old results; gives the number of the former."""
        removed = 0
        for directory in self._unfinished.iterdir() if self._unfinished.is_dir() else ():
            is_over = (directory / _RESULT).exists()
            with suppress(FileNotFoundError):  # what is stored or refused meanwhile goes by itself
                newest = max(path.stat().st_mtime for path in [directory, *directory.rglob("*")])
                is_old = time.time() - newest > (_RESULT_TTL_S if is_over else ttl_s)
                if is_old and directory.name not in self._streams:
                    shutil.rmtree(directory, ignore_errors=True)
                    removed += not is_over
        return removed

    def _directory(self, upload_id: str) -> Path:
        return self._unfinished / require_match(upload_id, UPLOAD_ID_PATTERN, field="upload_id")

    async def _fill(
        self, upload: Upload, messages: AsyncIterator[pb.UploadDatasetRequest], stream: Stream[UploadResult]
    ) -> str:
        """Write the chunks; gives the digest that ends them."""
        async for message in messages:
            match message.WhichOneof("part"):
                case "chunk":
                    self._received.inc(len(message.chunk))
                    async with stream.turn(), self._writing:
                        await run_blocking(upload.append, message.chunk)
                case "sha256":
                    return message.sha256
                case _:
                    raise violation("part", "must be a chunk, or sha256 to end the upload")
        raise _EndedEarly


class _EndedEarly(Exception):  # noqa: N818  # a way out, not a failure
    """The stream ended without a digest; so does one whose connection was cut."""


def _check_name(name: str, *, field: str) -> None:
    require_display_name(name, field=field)
    if not is_plain_path(name):
        raise violation(field, f"must be a file's name, perhaps below a folder, got {name!r:.60}")


def _resume(directory: Path, announced: Announced, offset: int, limit_bytes: int) -> Upload:
    """The upload in a directory, cut off at `offset`; begun when there is none."""
    upload = Upload(directory, announced, limit_bytes=limit_bytes)
    (directory / _RESULT).unlink(missing_ok=True)
    upload.rewind(offset)
    return upload


def _finish(directory: Path, upload: Upload, store: Callable[[Upload], UploadResult]) -> UploadResult:
    """Store the files' rows, and leave the result in their place."""
    result = store(upload)
    with replacing(directory / _RESULT) as file:
        file.write(result.to_json().encode())
    shutil.rmtree(directory / "files")
    return result
