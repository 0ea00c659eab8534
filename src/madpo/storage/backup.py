"""Backs up an object store that is in use, and writes a backup back into an empty one.

All writers of the store write what is needed before what needs it: files before their manifest, a model before the
result that names it, an attempt's ownership before its checkpoints. So a backup reads the other way round: what it has
read needs only what was there already. It reads

1. requests and outcomes of jobs, and those of the jobs they depend on;
2. manifests, and the files they name; again as long as new ones come or some went meanwhile;
3. everything else: ledgers, margins, logs, tokens, pins, the audit log;
4. which attempt owns each job.

What a job did that was submitted after 1 is left out. The result is a state that a crash could have left, and jobs go
on from it as after a crash.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from madpo.errors import CorruptObjectError, FailedPreconditionError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectInfo, ObjectStore
from madpo.storage import bundle, content_names, documents, keys
from madpo.storage.files import Transfer, unwatched
from madpo.storage.snapshots import Entry, Snapshot, Snapshots

_PARALLEL_TRANSFERS = 4
_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 6
"""Of looking for manifests: one that is taken away for a moment, while somebody looks whether it may be deleted, is
there the next time."""
_PROBES = keys.probe("")


def back_up(
    store: ObjectStore, snapshots: Snapshots, *, scratch: Path | None = None, transfer: Transfer = unwatched
) -> Snapshot:
    """Back up a store, which may be in use; what the place holds already is not copied again.

    Args:
        store: What to back up.
        snapshots: Where to.
        scratch: Local directory with room for the four largest objects; None is the system's.
        transfer: Told of the bytes that are copied; may end it by raising.

    Returns:
        The snapshot. Its `damaged` names what is damaged in the store, and is not in it.

    Raises:
        FailedPreconditionError: Another backup goes on there.
    """
    with snapshots.alone(), tempfile.TemporaryDirectory(prefix="madpo-backup-", dir=scratch) as directory:
        backup = _Backup(store, snapshots, _newest_entries(snapshots), Path(directory), transfer)
        specs, results = backup.job_documents()
        manifests, files = backup.bundles()
        rest = backup.everything_else()
        owners = backup.owners()
        # In the order of writing back: the gateway takes up a job as soon as its request is there.
        manifests.sort(key=lambda entry: entry.modified_time)
        entries = [*owners, *rest, *files, *manifests, *results, *specs]
        return snapshots.write(entries, damaged=sorted(backup.damaged))


def restore(
    store: ObjectStore,
    snapshots: Snapshots,
    snapshot: Snapshot,
    *,
    scratch: Path | None = None,
    transfer: Transfer = unwatched,
) -> None:
    """Write a snapshot into a store that holds nothing else; one that was broken off goes on.

    Raises:
        FailedPreconditionError: The store holds something else.
        CorruptObjectError: The backup is damaged; names what. What is written back by then stays.
    """
    entries = snapshots.entries(snapshot)
    with tempfile.TemporaryDirectory(prefix="madpo-restore-", dir=scratch) as directory:
        there = _already_restored(store, entries, Path(directory))
        missing = [entry for entry in entries if entry.key not in there]
        passed = transfer("restoring", sum(entry.size_bytes for entry in missing))

        def write_back(entry: Entry) -> None:
            path = Path(directory, uuid4().hex)
            snapshots.fetch(entry, path)
            store.put_file(entry.key, path)
            path.unlink()
            passed(entry.size_bytes)

        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            content = [entry for entry in missing if not _makes_real(entry)]
            list(pool.map(write_back, content))
        for entry in missing:  # one after the other: lists of datasets and models go by the age of their manifests
            if _makes_real(entry):
                write_back(entry)


def verify(snapshots: Snapshots, snapshot: Snapshot, *, scratch: Path | None = None) -> list[str]:
    """Read all that a snapshot holds; says what is damaged or missing, and removes nothing.

    The next backup by `snapshots` copies it again if the store still has it, and then all snapshots that need it are
    whole again.
    """
    try:
        entries = snapshots.entries(snapshot)
    except (CorruptObjectError, UnknownFormatError) as error:
        return [str(error)]
    with tempfile.TemporaryDirectory(prefix="madpo-verify-", dir=scratch) as directory:

        def look(entry: Entry) -> str:
            path = Path(directory, uuid4().hex)
            try:
                snapshots.fetch(entry, path)
            except CorruptObjectError as error:
                return str(error)
            path.unlink()
            return ""

        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            wrong = list(pool.map(look, entries))
    snapshots.distrust([entry.sha256 for entry, each in zip(entries, wrong, strict=True) if each])
    return list(filter(None, wrong))


class _Backup:
    def __init__(
        self, store: ObjectStore, snapshots: Snapshots, before: Mapping[str, Entry], scratch: Path, transfer: Transfer
    ) -> None:
        self._store, self._snapshots, self._before, self._scratch = store, snapshots, before, scratch
        self._transfer = transfer
        self._jobs: set[str] = set()
        self._bundles: set[str] = set()
        self.damaged: set[str] = set()

    def job_documents(self) -> tuple[list[Entry], list[Entry]]:
        """Requests and outcomes of all jobs, and of those they depend on, which a listing may have passed by."""
        listed = list(self._store.list(f"{keys.JOBS}/"))
        open_ids = {_job_of(info.key) for info in listed if info.key == keys.job_spec(_job_of(info.key))}
        results: list[Entry] = []
        specs: list[Entry] = []
        while open_ids:
            self._jobs |= open_ids
            # Outcomes first: of a job that is being deleted its request goes before them, so none looks unfinished.
            results += self._copy_all(map(keys.job_result, sorted(open_ids)))
            found = self._copy_all(map(keys.job_spec, sorted(open_ids)))
            specs += found
            needed = {each for entry in found for each in self._dependencies(_job_of(entry.key))}
            open_ids = needed - self._jobs
        return specs, results

    def bundles(self) -> tuple[list[Entry], list[Entry]]:
        """Manifests, and the files that they name."""
        manifests: dict[str, Entry] = {}
        files: dict[str, Entry] = {}
        for number in range(1, _MOST_ROUNDS + 1):
            found = [info for info in self._listed() if info.key.endswith(f"/{keys.MANIFEST}")]
            news = [info for info in found if info.key not in files and _folder(info.key) not in self._bundles]
            gone = 0
            for info in sorted(news, key=lambda info: info.key.count("/")):  # a bundle may hold a file of that name
                if info.key in files:
                    continue
                try:
                    manifest, named = self._bundle(info)
                except NotFoundError:
                    gone += 1
                    continue
                except (CorruptObjectError, UnknownFormatError) as error:
                    self.damaged.add(str(error))
                    self._bundles.add(_folder(info.key))
                    continue
                self._bundles.add(_folder(info.key))
                manifests[info.key] = manifest
                files |= {entry.key: entry for entry in named}
            if number >= _FEWEST_ROUNDS and not gone:
                break
        return list(manifests.values()), list(files.values())

    def everything_else(self) -> list[Entry]:
        """What is in no bundle, and was not read before or is not to be read after it."""
        alone = (keys.job_spec, keys.job_result, keys.job_owner)
        rest = [
            info
            for info in self._listed()
            if not self._is_in_bundle(info.key) and info.key not in {key(_job_of(info.key)) for key in alone}
        ]
        return self._copy_listed(rest)

    def owners(self) -> list[Entry]:
        """Who owns each job, after all that owners wrote."""
        return self._copy_all(map(keys.job_owner, sorted(self._jobs)))

    def _listed(self) -> Iterator[ObjectInfo]:
        """What there is, but for what a job did that is not part of the backup."""
        for info in self._store.list(""):
            is_foreign = info.key.startswith(f"{keys.JOBS}/") and _job_of(info.key) not in self._jobs
            if not is_foreign and not info.key.startswith(_PROBES):
                yield info

    def _is_in_bundle(self, key: str) -> bool:
        folders = key.split("/")[:-1]
        return any("/".join(folders[:depth]) + "/" in self._bundles for depth in range(1, len(folders) + 1))

    def _dependencies(self, job_id: str) -> list[str]:
        key = keys.job_spec(job_id)
        try:
            return list(documents.decode(self._store.get(key), key=key).get("depends_on", ()))
        except (NotFoundError, CorruptObjectError):
            return []

    def _bundle(self, info: ObjectInfo) -> tuple[Entry, list[Entry]]:
        """Raises NotFoundError where it is being removed, CorruptObjectError where it is damaged."""
        prefix = info.key.removesuffix(f"/{keys.MANIFEST}")
        wanted = [
            (ObjectInfo(f"{prefix}/{file.path}", file.size_bytes, "", info.modified_time), file.sha256)
            for file in bundle.read_manifest(self._store, prefix).files
        ]
        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            files = list(pool.map(lambda each: self._copy(*each), wanted))
        manifest = self._copy(info)
        if manifest is None:
            raise NotFoundError(f"no object {info.key}")
        if missing := [each.key for (each, _), entry in zip(wanted, files, strict=True) if entry is None]:
            if self._store.head(info.key) is None:
                raise NotFoundError(f"no object {info.key}")
            raise CorruptObjectError(f"{missing[0]} is missing though its manifest names it")
        return manifest, [entry for entry in files if entry is not None]

    def _copy_all(self, names: Iterable[str]) -> list[Entry]:
        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            return self._copy_listed([info for info in pool.map(self._store.head, names) if info])

    def _copy_listed(self, infos: Iterable[ObjectInfo]) -> list[Entry]:
        def copy(info: ObjectInfo) -> Entry | None:
            try:
                return self._copy(info, content_names.named_sha256(info.key))
            except CorruptObjectError as error:
                self.damaged.add(str(error))
                return None

        with ThreadPoolExecutor(_PARALLEL_TRANSFERS) as pool:
            return [entry for entry in pool.map(copy, infos) if entry]

    def _copy(self, info: ObjectInfo, sha256: str | None = None) -> Entry | None:
        """Copy an object unless its content is there; None where it is gone.

        Args:
            info: As listed. It may be written over before it is read: then its newer content is taken under the older
                etag, and read again for the next snapshot.
            sha256: What its content must have, where that is known.
        """
        before = self._before.get(info.key)
        known = sha256 or (before.sha256 if before and before.etag == info.etag else None)
        if known and self._snapshots.holds(known, info.size_bytes):
            return Entry(info.key, known, info.size_bytes, info.etag, info.modified_time)
        path = self._scratch / uuid4().hex
        passed: Callable[[int], None] = self._transfer(f"backing up {info.key}", info.size_bytes)
        try:
            found = self._store.get_file(info.key, path, passed=passed)
            if sha256 not in (None, found):
                raise CorruptObjectError(f"{info.key} is damaged: its SHA-256 must be {sha256}, and is {found}")
            if sha256 is None:
                _check_document(info.key, path)
            entry = Entry(info.key, found, path.stat().st_size, info.etag, info.modified_time)
            if not self._snapshots.holds(found, entry.size_bytes):
                self._snapshots.add(found, path)
        except NotFoundError:
            return None
        finally:
            path.unlink(missing_ok=True)
        return entry


def _newest_entries(snapshots: Snapshots) -> dict[str, Entry]:
    """What the newest snapshot holds that can be read, by key: what is the same now need not be read again."""
    for snapshot in reversed(snapshots.all()):
        with suppress(CorruptObjectError, UnknownFormatError):
            return {entry.key: entry for entry in snapshots.entries(snapshot)}
    return {}


def _check_document(key: str, path: Path) -> None:
    """Raises CorruptObjectError for a document that does not match its own digest; the files of bundles carry none."""
    if key.endswith(".json") and keys.bundle_of(key) is None:
        with suppress(UnknownFormatError):
            documents.unseal(path.read_bytes(), key=key)


def _already_restored(store: ObjectStore, entries: Iterable[Entry], scratch: Path) -> set[str]:
    """Keys of what an earlier restore wrote back."""
    by_key = {entry.key: entry for entry in entries}
    there: set[str] = set()
    for info in store.list(""):
        if info.key.startswith(_PROBES):
            continue
        entry = by_key.get(info.key)
        path = scratch / uuid4().hex
        if entry is None or store.get_file(info.key, path) != entry.sha256:
            raise FailedPreconditionError(
                f"the store is not empty, and {info.key} is not from this snapshot: restore into an empty one"
            )
        path.unlink()
        there.add(info.key)
    return there


def _makes_real(entry: Entry) -> bool:
    """Whether it makes other objects real, and so comes after them."""
    return entry.key.endswith(f"/{keys.MANIFEST}") or entry.key in (
        keys.job_result(_job_of(entry.key)),
        keys.job_spec(_job_of(entry.key)),
    )


def _folder(manifest: str) -> str:
    """What the keys of a bundle start with."""
    return manifest.removesuffix(keys.MANIFEST)


def _job_of(key: str) -> str:
    return key.split("/")[1] if key.count("/") > 1 else ""
