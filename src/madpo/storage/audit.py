"""The audit log: one object for each call that was to change something, written once.

Object stores cannot append, and what is written by its own name is never written over by a second gateway.
"""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta

from madpo.errors import CorruptObjectError, InvalidArgumentError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.types import AuditRecord, Role

logger = logging.getLogger(__name__)

_EPOCH = date(1970, 1, 1)


def write_record(store: ObjectStore, record: AuditRecord) -> None:
    """Note a call. Raises UnavailableError."""
    store.put_if_absent(
        keys.audit_record(_day(record.time), time_us=int(record.time * 1e6), nonce=uuid.uuid4().hex[:12]),
        documents.seal(asdict(record)),
    )


def read_records(
    store: ObjectStore, *, since: float = 0.0, caller: str = "", page_size: int, page_token: str = ""
) -> tuple[list[AuditRecord], str]:
    """A page of records, oldest first, and the token of the next ("" at the end).

    Args:
        store: Where they are.
        since: Seconds since the epoch; earlier ones are left out.
        caller: A caller's name, to see no other's; "" for all.
        page_size: Most records.
        page_token: Of the page before; "" for the first.

    Raises:
        InvalidArgumentError: `page_token` is none of ours.
    """
    if page_token:
        _check_token(page_token)
    records: list[AuditRecord] = []
    last = ""
    for key in _keys_from(store, max(page_token, keys.audit_record(_day(since), time_us=int(since * 1e6), nonce=""))):
        try:
            record = _read(store, key)
        except (CorruptObjectError, UnknownFormatError) as error:
            logger.error("audit record cannot be read", extra={"key": key, "error": str(error)})
            continue
        if record.time < since or caller not in ("", record.caller):
            continue
        if len(records) == page_size:
            return records, last
        records.append(record)
        last = key
    return records, ""


def _read(store: ObjectStore, key: str) -> AuditRecord:
    body = documents.unseal(store.get(key), key=key)
    with documents.reading(key):
        fields = documents.known_fields(AuditRecord, body)
        return AuditRecord(**fields | {"role": Role(body["role"]), "subjects": tuple(body["subjects"])})


def _check_token(token: str) -> None:
    prefix, _, rest = token.partition("/")
    try:
        date.fromisoformat(rest.partition("/")[0])
    except ValueError:
        prefix = ""
    if prefix != keys.AUDIT:
        raise InvalidArgumentError(f"page_token {token!r:.80} did not come with a page")


def _keys_from(store: ObjectStore, start: str) -> Iterator[str]:
    """Keys behind `start`, in their order, day by day: years of them are not listed to see the last week."""
    day = date.fromisoformat(start.split("/")[1])
    if day == _EPOCH:
        yield from (info.key for info in store.list(f"{keys.AUDIT}/"))
        return
    while day <= datetime.now(UTC).date():
        yield from (info.key for info in store.list(f"{keys.audit_day(day.isoformat())}/") if info.key > start)
        day += timedelta(days=1)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
