"""Things that retention leaves alone because somebody said so."""

import time

from madpo.ports import ObjectStore
from madpo.storage import documents, keys


def pin(store: ObjectStore, thing_id: str, *, caller: str) -> None:
    """Pin a job, a model or a dataset; again, it changes nothing."""
    store.put_if_absent(keys.pin(thing_id), documents.seal({"caller": caller, "time": time.time()}))


def unpin(store: ObjectStore, thing_id: str) -> None:
    """Let go of it; one that is not pinned stays so."""
    store.delete(keys.pin(thing_id))


def pinned(store: ObjectStore) -> frozenset[str]:
    """The ids of all that is pinned."""
    return frozenset(info.key.rpartition("/")[2].removesuffix(".json") for info in store.list(f"{keys.PINS}/"))
