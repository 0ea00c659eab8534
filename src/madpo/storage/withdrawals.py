"""Bundles that are removed though others may need them, or store the same again, at the same moment.

    withdrawn/{prefix of the bundle}.json    {"manifest": "...", "prefixes": [...], "is_final": false, "nonce": "..."}

Who removes a bundle leaves this note with its manifest, and then takes the manifest away: nobody finds the bundle any
more, and its files are still there. Then he looks once more who needs it. If somebody does, the manifest goes back and
the note goes. If nobody does, the note becomes final, the files go, and the note goes last.

Who stores a bundle renews its manifest, or writes it, and looks for a note after that; who removes it leaves the note
and looks at the manifest after that. So one of the two notices the other: either the bundle is not removed, or it is
stored anew once the note is gone.

A note is only changed by who wrote it last, so that another can take over from one that died, see
`storage/recovery.py`. One that was only slow stops at its next look at the note.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from madpo.errors import (
    AlreadyExistsError,
    CorruptObjectError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.bundle import Manifest
from madpo.storage.files import Transfer, unwatched
from madpo.storage.mending import mend

_HOLD_S = 10.0
_PATIENCE_S = 120.0
"""Of who stores what is being removed; longer than it takes until another goes on with that."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Note:
    """What stands under `withdrawn/`."""

    manifest: str
    """Its bytes, each a character; "" of what never had one."""
    prefixes: tuple[str, ...]
    """Of the bundle, then of what goes with it."""
    nonce: str
    is_final: bool = False

    def encode(self) -> bytes:
        """Its bytes."""
        return documents.seal(asdict(self))

    @classmethod
    def decode(cls, data: bytes, *, key: str) -> Self:
        """Inverse of `encode`. Raises CorruptObjectError and UnknownFormatError."""
        body = documents.unseal(data, key=key)
        with documents.reading(key):
            fields = documents.known_fields(cls, body)
            return cls(**{**fields, "prefixes": tuple(fields["prefixes"])})


class Withdrawal:
    """A bundle out of sight: to be put back, or removed. Made by `withdraw`."""

    def __init__(self, store: ObjectStore, note: Note, etag: str) -> None:
        self._store, self._note, self._etag = store, note, etag
        self._prefix = note.prefixes[0]
        self._key = keys.withdrawal(self._prefix)
        self._held_at = time.monotonic()

    @classmethod
    def taken_over(cls, store: ObjectStore, key: str) -> Self | None:
        """One that somebody else has begun; None where that one goes on."""
        try:
            data, etag = store.get_with_etag(key)
        except NotFoundError:
            return None
        note = replace(Note.decode(data, key=key), nonce=uuid4().hex)
        taken = store.put_if_match(key, note.encode(), etag)
        return None if taken is None else cls(store, note, taken)

    @property
    def is_final(self) -> bool:
        """Whether files may be gone already, so that it cannot be put back."""
        return self._note.is_final

    def put_back(self) -> None:
        """Show the bundle again; one that was stored anew meanwhile stays.

        Raises:
            FailedPreconditionError: It took so long to come to this that another has taken over.
        """
        self._change()
        self._show()
        self._store.delete(self._key)

    def remove(self) -> None:
        """Remove its files.

        Raises:
            FailedPreconditionError: As `put_back`.
        """
        self._change(is_final=True)
        for prefix in self._note.prefixes:
            # Also a manifest that came since, from somebody who finds the note or misses files, and then stores them.
            found = [info.key for info in self._store.list(f"{prefix}/")]
            for key in sorted(found, key=lambda each: not each.endswith(f"/{keys.MANIFEST}")):
                self._hold()
                self._store.delete(key)
        self._hold()
        self._store.delete(self._key)

    def _hold(self) -> None:
        """Show now and then that somebody is at it."""
        if time.monotonic() - self._held_at > _HOLD_S:
            self._change()

    def _change(self, **fields: Any) -> None:
        note = replace(self._note, nonce=uuid4().hex, **fields)
        etag = self._store.put_if_match(self._key, note.encode(), self._etag)
        if etag is None:
            if self._store.head(self._key) is None and not self.is_final:
                self._show()  # the other put it back, before we took the manifest away
            raise FailedPreconditionError(f"{self._prefix} was to be removed, and another has taken that over")
        self._note, self._etag, self._held_at = note, etag, time.monotonic()

    def _show(self) -> None:
        if self._note.manifest:
            bundle.show(self._store, self._prefix, self._note.manifest.encode("latin-1"))


def withdraw(store: ObjectStore, prefix: str, *, stored_time: float | None, along: Sequence[str] = ()) -> Withdrawal:
    """Take a bundle out of sight.

    Args:
        store: Where it is.
        prefix: Key prefix of the bundle.
        stored_time: When it was stored last, as its remover knows it; None where its manifest is damaged.
        along: Key prefixes of what is removed with it.

    Raises:
        NotFoundError: There is no such bundle.
        CorruptObjectError: Its manifest is damaged, and was not when it was decided.
        FailedPreconditionError: It was stored again since, or is being removed already.
    """
    key, manifest_key = keys.withdrawal(prefix), f"{prefix}/{keys.MANIFEST}"
    data = store.get(manifest_key)
    note = Note(data.decode("latin-1"), (prefix, *along), uuid4().hex)
    again = FailedPreconditionError(f"{prefix} was stored again just now: remove it again if it is to go all the same")
    if bundle.find_stored_time(store, prefix, is_damaged=stored_time is None) != stored_time:
        raise again
    etag = _leave(store, key, note)
    try:
        unchanged = store.get(manifest_key) == data
    except NotFoundError:
        store.delete(key)
        raise
    if not unchanged:
        store.delete(key)
        raise again
    store.delete(manifest_key)
    return Withdrawal(store, note, etag)


def withdraw_unfinished(store: ObjectStore, prefix: str, *, before: float) -> Withdrawal:
    """Keep a bundle that never got its manifest from getting it, before its files are removed.

    Args:
        store: Where it is.
        prefix: Key prefix of the bundle.
        before: When the last of its files must have been written, in seconds since the epoch: later ones may be those
            of an upload that goes on.

    Raises:
        NotFoundError: There is nothing.
        FailedPreconditionError: It is finished, has newer files, or is being removed already.
    """
    _require_given_up(store, prefix, before)
    key, note = keys.withdrawal(prefix), Note("", (prefix,), uuid4().hex)
    etag = _leave(store, key, note)
    try:
        _require_given_up(store, prefix, before)
    except BaseException:
        store.delete(key)
        raise
    return Withdrawal(store, note, etag)


def _require_given_up(store: ObjectStore, prefix: str, before: float) -> None:
    infos = list(store.list(f"{prefix}/"))
    if not infos:
        raise NotFoundError(f"there is nothing of {prefix}")
    if any(info.key == f"{prefix}/{keys.MANIFEST}" for info in infos):
        raise FailedPreconditionError(f"{prefix} is finished")
    if max(info.modified_time for info in infos) > before:
        raise FailedPreconditionError(f"{prefix} has newer files: somebody may be storing it")


def _leave(store: ObjectStore, key: str, note: Note) -> str:
    """Leave a note; its etag. Raises FailedPreconditionError where there is one."""
    prefix = note.prefixes[0]
    if not store.put_if_absent(key, note.encode()):
        raise FailedPreconditionError(f"{prefix} is being removed already: look again in a minute")
    found, etag = store.get_with_etag(key)
    if found != note.encode():
        raise FailedPreconditionError(f"{prefix} is being removed by another")
    return etag


def withdrawn(store: ObjectStore) -> Iterator[str]:
    """Key prefixes of the bundles that are out of sight."""
    for info in store.list(f"{keys.WITHDRAWN}/"):
        yield withdrawn_prefix(info.key)


def withdrawn_prefix(key: str) -> str:
    """Key prefix of the bundle that a note is about."""
    return key.removeprefix(f"{keys.WITHDRAWN}/").removesuffix(".json")


def _is_withdrawn(store: ObjectStore, prefix: str) -> bool:
    # By a listing: services that store models may list the whole bucket, and read little of it.
    key = keys.withdrawal(prefix)
    return any(info.key == key for info in store.list(key))


def settle(store: ObjectStore, prefix: str) -> None:
    """Wait until a bundle is neither about to be removed nor about to be put back.

    Raises:
        UnavailableError: That takes too long.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while _is_withdrawn(store, prefix):
        if time.monotonic() > deadline:
            raise UnavailableError(f"{prefix} is being removed at this moment: try again in a minute")
        time.sleep(_POLL_S)


def store_again(
    store: ObjectStore,
    prefix: str,
    directory: Path,
    *,
    metadata: Mapping[str, Any],
    transfer: Transfer = unwatched,
) -> tuple[Manifest, bool]:
    """Store a bundle that is named by its content, also where it is there already or is being removed.

    Args:
        store: Where to.
        prefix: Key prefix of the bundle.
        directory: Its files.
        metadata: See `bundle.publish`; that of the first who stored it stays.
        transfer: See `bundle.publish`.

    Returns:
        What is stored now, whole: each byte of what was there before was read. And whether it was not there before.

    Raises:
        InvalidArgumentError: See `bundle.publish`.
        FailedPreconditionError: See `mend`.
        UnavailableError: It is being removed without end.
    """
    began, deadline, created = time.time(), time.monotonic() + _PATIENCE_S, False

    def guard() -> None:
        if _is_withdrawn(store, prefix):
            raise _WithdrawnError

    while True:
        try:
            guard()
            if bundle.renew(store, prefix, since=began) is None:
                bundle.publish(store, prefix, directory, metadata=metadata, guard=guard, transfer=transfer)
                created = True
            elif not created:
                mend(store, prefix, directory, transfer=transfer)
            guard()
            # Whoever removed it may have come and gone meanwhile.
            if (manifest := bundle.find_whole(store, prefix)) is not None:
                return manifest, created
        except (AlreadyExistsError, CorruptObjectError, NotFoundError, _WithdrawnError):
            pass  # stored by another at the same time, in other files; removed under our hands; or being removed
        time.sleep(_POLL_S)
        if time.monotonic() > deadline:
            raise UnavailableError(f"{prefix} is being removed at the same time: store it again in a minute")


class _WithdrawnError(Exception):
    """The bundle is being removed."""
