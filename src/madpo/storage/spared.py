"""Checkpoints that other jobs name: the run that makes them goes on and removes its older ones, but for these."""

import re

from madpo.errors import CorruptObjectError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.storage.results import read_result
from madpo.types import JobState

_KEY = re.compile(r".*/step-(\d{8,})-(job-[0-9a-f]{32})\.json")


def spare(store: ObjectStore, job_id: str, step: int, *, user: str) -> None:
    """Have a checkpoint of a job kept for another, before it is looked whether the checkpoint is there.

    Args:
        store: Where it is.
        job_id: Whose it is.
        step: Of the checkpoint.
        user: The job that names it.
    """
    store.put_if_absent(keys.spared_checkpoint(job_id, step=step, user=user), documents.seal({"user": user}))


def spared_steps(store: ObjectStore, job_id: str) -> set[int]:
    """Steps of a job's checkpoints that others name which have not succeeded yet, and were not deleted."""
    found: dict[str, set[int]] = {}
    for info in store.list(f"{keys.spared_checkpoints(job_id)}/"):
        if match := _KEY.fullmatch(info.key):
            found.setdefault(match[2], set()).add(int(match[1]))
    return {step for user, steps in found.items() if _needs_it(store, user) for step in steps}


def _needs_it(store: ObjectStore, user: str) -> bool:
    if store.head(keys.job_spec(user)) is None:
        return False
    try:
        return read_result(store, user).state is not JobState.SUCCEEDED
    except (NotFoundError, CorruptObjectError, UnknownFormatError):
        return True
