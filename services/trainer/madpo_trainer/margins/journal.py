"""Margins as they were learned, kept in the object store before any step uses them."""

import itertools
import json
import logging
import math
from collections.abc import Collection
from typing import Any

from madpo.errors import CorruptObjectError, RevisionMismatchError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo.storage.content_names import get_verified, sha256_of

logger = logging.getLogger(__name__)


class MarginJournal:
    """The margins of one job, one object per reply. `append` may be called from several threads."""

    def __init__(self, store: ObjectStore, *, job_id: str, attempt: int) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self._parts = itertools.count()
        self.truncated: set[str] = set()
        """Pairs of which the reward model read only a part, as far as `load` and `append` know."""

    def load(self, revision: str, *, without_damaged: bool = False) -> tuple[dict[str, float | None], set[str]]:
        """Margins by pair id from all attempts so far, and which are of training pairs; the earliest entry counts.

        Args:
            revision: Of the reward model.
            without_damaged: Pass over entries that were changed: the same margins will be had by asking again.

        Raises:
            RevisionMismatchError: The journal was written under another revision of the reward model.
            CorruptObjectError: An entry was changed; names it.
        """
        margins: dict[str, float | None] = {}
        of_training: set[str] = set()
        for entry in self._store.list(keys.margin_journal(self._job_id) + "/"):
            try:
                records = _records(self._store, entry.key)
            except CorruptObjectError as error:
                if not without_damaged:
                    raise
                logger.warning("damaged margins are asked for again", extra={"error": str(error)})
                continue
            for record in records:
                if record["revision"] != revision:
                    raise RevisionMismatchError(
                        f"job {self._job_id} began with reward-model revision {record['revision']}, the service now "
                        f"serves {revision} (restore the scorer's dtype and batch settings, or start a new job)"
                    )
                margins.setdefault(record["pair_id"], record["reward_margin"])
                if record.get("truncated"):
                    self.truncated.add(record["pair_id"])
                if record.get("training", True):
                    of_training.add(record["pair_id"])
        return margins, of_training

    def next_part(self) -> int:
        """The number of a reply's object; a reply that is stored again after an outage keeps its own."""
        return next(self._parts)

    def append(
        self,
        part: int,
        margins: dict[str, float | None],
        revision: str,
        *,
        training: bool = True,
        truncated: Collection[str] = (),
    ) -> None:
        """Store what one reply brought; None marks a pair that goes without a margin, `truncated` those cut short."""
        use = {"revision": revision} if training else {"revision": revision, "training": False}
        lines = [
            json.dumps(
                {"pair_id": pair_id, "reward_margin": margin, **use}
                | ({"truncated": True} if pair_id in truncated else {})
            )
            for pair_id, margin in margins.items()
        ]
        self.truncated.update(truncated)
        data = ("\n".join(lines) + "\n").encode()
        key = keys.margin_journal_part(self._job_id, attempt=self._attempt, part=part, sha256=sha256_of(data))
        self._store.put(key, data)


def _records(store: ObjectStore, key: str) -> list[dict[str, Any]]:
    data = get_verified(store, key)
    try:
        records = [json.loads(line) for line in data.decode().splitlines()]
        if all(record["reward_margin"] is None or math.isfinite(record["reward_margin"]) for record in records):
            return records
    except (ValueError, KeyError, TypeError):
        pass
    raise CorruptObjectError(f"{key} is not a journal of margins")
