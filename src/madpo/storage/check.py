"""Reads a whole object store and says what is wrong in it."""

import contextlib
import hashlib
import re
import time
from collections.abc import Generator, Iterator

from madpo.errors import CorruptObjectError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectInfo, ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.content_names import named_sha256
from madpo.storage.ledger import LEDGER_PARTS
from madpo.storage.recovery import mend_withdrawal
from madpo.storage.results import read_result, read_spec
from madpo.storage.withdrawals import withdrawn_prefix
from madpo.types import FileEntry, StoreCheckProgress, StoreFinding

_PIECE_BYTES = 1 << 20
_PROGRESS_BYTES, _PROGRESS_OBJECTS = 256 << 20, 500
_MADE_AGAIN = re.compile(rf"({keys.TOKENS}|{keys.REFERENCE_LOGPS})/.*")
"""By the next training."""
_MADE_AGAIN_BY_JOB = re.compile(rf"{keys.JOBS}/([^/]+)/(checkpoints|generations|rewards)/.*")
"""As long as that is not over."""
_LEFT_S = 600.0
"""Whoever removes something changes its note more often; in seconds, of two clocks that may differ."""

StoreCheck = Iterator[StoreFinding | StoreCheckProgress]


def check_store(store: ObjectStore, *, repair: bool = False) -> StoreCheck:
    """Compare every byte of a store with its digest.

    What others write meanwhile is no finding; what they remove meanwhile may be one.

    Args:
        store: Read as a whole, object by object.
        repair: Remove what is damaged and will be made again: token ids, reference log-probs, and of jobs that are not
            over checkpoints (the job goes on from the one before) and the responses of an evaluation. Damaged notes of
            removals are done with, see `mend_withdrawal`.

    Returns:
        What is wrong, in the order of keys, and now and then, and last, how much was read.
    """
    return _Check(store, repair).run()


class _Check:
    def __init__(self, store: ObjectStore, repair: bool) -> None:
        self._store, self._repair = store, repair
        self._objects = self._bytes = 0
        self._said = (0, 0)

    def run(self) -> StoreCheck:
        pending: list[ObjectInfo] = []
        prefix: str | None = None
        for info in self._store.list(""):
            found = keys.bundle_of(info.key)
            if found != prefix:
                yield from self._bundle(prefix, pending)
                prefix, pending = found, []
            if found is None:
                yield from self._single(info)
            else:
                pending.append(info)
        yield from self._bundle(prefix, pending)
        yield self._progress()

    def _bundle(self, prefix: str | None, infos: list[ObjectInfo]) -> StoreCheck:
        if prefix is None:
            return
        there = {info.key.removeprefix(f"{prefix}/"): info for info in infos}
        if keys.MANIFEST not in there:
            # On its way: what names itself can be verified all the same.
            for info in infos:
                if named_sha256(info.key):
                    yield from self._single(info)
            if not keys.is_growing(prefix) and self._store.head(f"{prefix}/{keys.MANIFEST}") is None:
                yield StoreFinding(prefix, "unfinished", "it has no manifest: it is being written, or was given up")
            return
        self._count(there[keys.MANIFEST])
        try:
            manifest = bundle.read_manifest(self._store, prefix)
        except NotFoundError:
            return  # deleted meanwhile
        except CorruptObjectError as error:
            yield self._damaged(prefix, f"{prefix}/{keys.MANIFEST}", str(error))
            return
        except UnknownFormatError as error:
            yield StoreFinding(f"{prefix}/{keys.MANIFEST}", "newer", str(error))
            return
        for file in manifest.files:
            yield from self._file(prefix, file, there.get(file.path))
        for key in manifest.metadata.get(LEDGER_PARTS, ()):
            if self._store.head(key) is None:
                yield StoreFinding(key, "missing", f"{prefix} names it")

    def _file(self, prefix: str, file: FileEntry, info: ObjectInfo | None) -> StoreCheck:
        key = f"{prefix}/{file.path}"
        if info is None:
            yield self._damaged(prefix, key, "its manifest names it", verdict="missing")
            return
        yield from self._verify(prefix, info, file.sha256)

    def _single(self, info: ObjectInfo) -> StoreCheck:
        key = info.key
        if key.startswith(f"{keys.PROBES}/"):
            return
        if (expected := named_sha256(key)) is not None:
            yield from self._verify(None, info, expected)
        elif key.endswith(".json"):
            self._count(info)
            yield from self._document(key)
        else:
            self._count(info)
            yield StoreFinding(key, "unverified", "version 0.1.0 stored it, without a digest")

    def _verify(self, prefix: str | None, info: ObjectInfo, expected: str) -> StoreCheck:
        try:
            sha256 = yield from self._sha256(info)
        except CorruptObjectError as error:  # the disk cannot read it
            detail = str(error)
        else:
            if sha256 in (expected, None):
                return
            detail = f"its SHA-256 must be {expected}, that of its bytes is {sha256}"
        yield self._damaged(prefix, info.key, detail)

    def _document(self, key: str) -> StoreCheck:
        try:
            data = self._store.get(key)
            documents.unseal(data, key=key)
            job_id = key.split("/")[1]
            if key == keys.job_spec(job_id):
                read_spec(self._store, job_id)
            elif key == keys.job_result(job_id):
                with contextlib.suppress(NotFoundError):  # resumed
                    read_result(self._store, job_id)
        except NotFoundError:
            return
        except UnknownFormatError as error:
            yield StoreFinding(key, "newer", str(error))
        except CorruptObjectError as error:
            if key.startswith(f"{keys.WITHDRAWN}/"):
                yield self._damaged_withdrawal(key, str(error))
            else:
                yield self._damaged(None, key, str(error))
        else:
            if not documents.is_sealed(data):
                yield StoreFinding(key, "unverified", "version 0.1.0 stored it, without a digest")

    def _damaged(self, prefix: str | None, key: str, detail: str, *, verdict: str = "damaged") -> StoreFinding:
        repaired = self._repair and self._is_made_again(key)
        if repaired and prefix is not None:
            bundle.delete(self._store, prefix)
        elif repaired:
            self._store.delete(key)
        return StoreFinding(key, verdict, detail, repaired)

    def _damaged_withdrawal(self, key: str, detail: str) -> StoreFinding:
        info = self._store.head(key)
        is_left = info is not None and time.time() - info.modified_time > _LEFT_S
        if self._repair and is_left and (became := mend_withdrawal(self._store, key, gives_up=True)) is not None:
            return StoreFinding(key, "damaged", became, repaired=True)
        when = "--repair ends that" if is_left else "--repair ends that in some minutes"
        return StoreFinding(key, "damaged", f"{detail}; it keeps {withdrawn_prefix(key)} out of sight: {when}")

    def _is_made_again(self, key: str) -> bool:
        if _MADE_AGAIN.fullmatch(key):
            return True
        if not (match := _MADE_AGAIN_BY_JOB.fullmatch(key)):
            return False
        try:
            read_result(self._store, match[1])
        except NotFoundError:
            return True
        except (CorruptObjectError, UnknownFormatError):
            return False
        return False

    def _sha256(self, info: ObjectInfo) -> Generator[StoreCheckProgress, None, str | None]:
        """Of an object; None where it was removed meanwhile."""
        digest = hashlib.sha256()
        try:
            with self._store.open_read(info.key) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    digest.update(piece)
                    self._bytes += len(piece)
                    if self._is_time():
                        yield self._progress()
        except NotFoundError:
            return None
        self._objects += 1
        if self._is_time():
            yield self._progress()
        return digest.hexdigest()

    def _count(self, info: ObjectInfo) -> None:
        self._objects += 1
        self._bytes += info.size_bytes

    def _is_time(self) -> bool:
        objects, size_bytes = self._said
        return self._objects - objects >= _PROGRESS_OBJECTS or self._bytes - size_bytes >= _PROGRESS_BYTES

    def _progress(self) -> StoreCheckProgress:
        self._said = (self._objects, self._bytes)
        return StoreCheckProgress(self._objects, self._bytes)
