"""Withdrawals whose remover died are gone on with; of a damaged note nothing is removed, and what is whole is shown."""

import json
import logging
import re
import time
from collections.abc import Callable
from uuid import uuid4

from madpo.errors import CorruptObjectError, FailedPreconditionError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.storage.withdrawals import Note, Withdrawal, withdrawn_prefix

logger = logging.getLogger(__name__)

_ABANDONED_S = 60.0
"""After so long without a change a note is taken over."""
_MANIFEST = re.compile(rb'"manifest":("(?:[^"\\]|\\.)*")')


class Recovery:
    """Goes on with withdrawals whose remover died: puts back what is still whole, removes the rest of what is not.

    Of a note that is damaged see `mend_withdrawal`.

    Args:
        store: Where they are.
        abandoned_s: How long a note must not change until then, in seconds.
        clock: Seconds that never go back.
    """

    def __init__(
        self, store: ObjectStore, *, abandoned_s: float = _ABANDONED_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._abandoned_s, self._clock = store, abandoned_s, clock
        self._seen: dict[tuple[str, str], float] = {}

    def run(self) -> int:
        """Look at all; call it now and then. Returns how many were gone on with."""
        now, before, ended = self._clock(), self._seen, 0
        self._seen = {}
        for info in list(self._store.list(f"{keys.WITHDRAWN}/")):
            since = before.get((info.key, info.etag), now)
            if now - since < self._abandoned_s:
                self._seen[info.key, info.etag] = since
            else:
                ended += self._go_on(info.key)
        return ended

    def _go_on(self, key: str) -> bool:
        try:
            withdrawal = Withdrawal.taken_over(self._store, key)
            if withdrawal is None:
                return False
            if withdrawal.is_final:
                withdrawal.remove()
            else:
                withdrawal.put_back()
            what = "removed" if withdrawal.is_final else "put back"
        except CorruptObjectError as error:
            if (mended := mend_withdrawal(self._store, key, gives_up=False)) is None:
                logger.error(
                    "what was to be removed stays out of sight: `madpo store check --repair` gives it up",
                    extra={"key": key, "error": str(error)},
                )
                return False
            what = mended
        except (UnknownFormatError, FailedPreconditionError) as error:
            logger.error("what was to be removed stays out of sight", extra={"key": key, "error": str(error)})
            return False
        logger.warning("a removal that was broken off was gone on with", extra={"key": key, "outcome": what})
        return True


def mend_withdrawal(store: ObjectStore, key: str, *, gives_up: bool) -> str | None:
    """Go on with a withdrawal whose note is damaged, and that its remover has left.

    The manifest in the note has a digest of its own, so it may be known to be whole. Whether files were to go already
    is not: none is removed here.

    Args:
        store: Where it is.
        key: Of the note.
        gives_up: Whether the note may go though nothing can be shown again, so that the same can be stored anew.

    Returns:
        What became of it, in words; None where it stays as it is.
    """
    prefix = withdrawn_prefix(key)
    try:
        data, etag = store.get_with_etag(key)
    except NotFoundError:
        return None
    manifest = _manifest(data)
    if manifest is not None:
        note = Note(manifest.decode("latin-1"), (prefix,), nonce=uuid4().hex)
        if (taken := store.put_if_match(key, note.encode(), etag)) is None:
            return None
        Withdrawal(store, note, taken).put_back()
    elif gives_up or store.head(f"{prefix}/{keys.MANIFEST}") is not None:
        store.delete(key)
    else:
        return None
    if store.head(f"{prefix}/{keys.MANIFEST}") is not None:
        return f"{prefix} is there again"
    lost = "its manifest is lost" if manifest is None else "files of it are missing"
    return f"{prefix} is given up, as {lost}: the same can be stored again"


def _manifest(data: bytes) -> bytes | None:
    """The manifest in a note, where that part of it is whole."""
    if (found := _MANIFEST.search(data)) is None:
        return None
    try:
        manifest = str(json.loads(found[1])).encode("latin-1")
        documents.unseal(manifest, key="", sealed_always=True)
    except (ValueError, CorruptObjectError, UnknownFormatError):
        return None
    return manifest
