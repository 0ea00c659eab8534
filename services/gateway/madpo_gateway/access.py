"""Who may call the gateway: the token of its settings, and named tokens with roles; and what they did, noted."""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable

from prometheus_client import Counter

from madpo.errors import (
    MadpoError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from madpo.ports import ObjectStore
from madpo.rpc.access import require_token
from madpo.storage.access_tokens import TokenTable
from madpo.storage.audit import write_record
from madpo.types import AccessToken, AuditRecord, Caller, Role, TokenLimits

logger = logging.getLogger(__name__)

OPERATOR = "operator"
"""The caller whose token is in the gateway's settings; no other may have the name."""

_DAY_S = 24 * 3600.0
_GUESSES_WAIT_S = 0.1
"""Until the tokens are read again for one that nobody knows."""

READ_METHODS = frozenset(
    {
        "GetCaller",
        "GetUpload",
        "GetDataset",
        "ListDatasets",
        "CheckDataset",
        "ReadDatasetRows",
        "DownloadDataset",
        "GetModel",
        "ListModels",
        "ListCheckpoints",
        "DownloadModel",
        "GetJob",
        "ListJobs",
        "WatchJob",
        "ListArtifacts",
        "DownloadArtifact",
        "DownloadLedgerParts",
        "DownloadLog",
        "ListPins",
        "ServerReflectionInfo",
    }
)
SUBMIT_METHODS = frozenset(
    {
        "UploadDataset",
        "ImportDataset",
        "DeleteDataset",
        "UploadModel",
        "ImportModel",
        "DeleteModel",
        "CreateJob",
        "CancelJob",
        "ResumeJob",
        "DeleteJob",
        "Pin",
        "Unpin",
    }
)
COMPUTE_METHODS = frozenset({"ScorePairs", "ScoreResponses"})
"""For who may submit, since they cost what jobs do; they change nothing."""
ADMIN_READ_METHODS = frozenset({"ListTokens", "ListAuditRecords"})
"""For admins; so is all that is in no set, which counts as a change."""


def role_of(method: str) -> Role:
    """The least role that may call a method, `/madpo.v1.JobService/CreateJob`."""
    name = method.rpartition("/")[2]
    if name in READ_METHODS:
        return Role.READ
    return Role.SUBMIT if name in SUBMIT_METHODS | COMPUTE_METHODS else Role.ADMIN


class GatewayAccess:
    """Implements `madpo.rpc.access.Access`.

    Named tokens are read from the store again once `refresh_s` have passed, and at an unknown one: a new token is known
    at once, and a revoked one is refused by every gateway after `refresh_s` at the latest, calls that go on among them.
    No call waits longer than `patience_s` for the store. While it does not answer the tokens stay as they were for
    `max_age_s`; then only the operator's opens the gateway.

    Args:
        store: Where named tokens and the audit log are.
        operator_token: The token of the settings, an admin's.
        failures: Counts what could not be noted.
        refresh_s: See above.
        max_age_s: See above.
        patience_s: See above.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        operator_token: str,
        failures: Counter,
        refresh_s: float = 5.0,
        max_age_s: float = 60.0,
        patience_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._operator_token, self._failures = store, operator_token, failures
        self._refresh_s, self._max_age_s, self._patience_s, self._clock = refresh_s, max_age_s, patience_s, clock
        self._table = TokenTable(store)
        self._read_at = self._asked_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._reading_since = 0.0
        self._calls: dict[str, _Rate] = {}
        self._bytes: dict[str, _Rate] = {}

    async def identify(self, token: str | None) -> Caller:
        """See `Access`."""
        secret = require_token(token)
        if hmac.compare_digest(secret.encode(), self._operator_token.encode()):
            return Caller(OPERATOR, Role.ADMIN)
        called = self._clock()
        await self._refresh(self._refresh_s)
        self._require_known()
        found = self._table.find(secret)
        if found is None:
            # It may have been made since. However many guess, the table is read ten times a second at most.
            await asyncio.sleep(self._asked_at + _GUESSES_WAIT_S - called if self._asked_at < called else 0)
            is_up_to_date = await self._refresh(self._clock() - called)
            found = self._table.find(secret)
            if found is None and not is_up_to_date:
                raise UnavailableError(
                    "the object store does not answer, so it is not known whether this token is valid"
                )
        if found is None:
            raise UnauthenticatedError("wrong bearer token (`madpo token list` of an admin shows which there are)")
        _require_valid(found)
        self._take_call(found)
        return Caller(found.name, found.role)

    def check(self, caller: Caller, method: str) -> None:
        """See `Access`."""
        if not caller.role.includes(role_of(method)):
            raise PermissionDeniedError(
                f"the token {caller.name!r} has the role {caller.role.value}; {method.rpartition('.')[2]} is for"
                f" {role_of(method).value} (an admin makes tokens with `madpo token create`)"
            )
        if caller.name == OPERATOR:
            return
        self._require_known()
        found = self._table.named(caller.name)
        if found is None:
            raise UnauthenticatedError(f"the token {caller.name!r} is no longer kept, or cannot be read")
        _require_valid(found)

    @property
    def recheck_s(self) -> float:
        """See `Access`."""
        return self._refresh_s

    async def recheck(self) -> None:
        """See `Access`."""
        await self._refresh(0.0)

    def take_bytes(self, caller: Caller, count: int) -> None:
        """See `Access`. More than is left may be taken, and is then owed: an import is known only afterwards."""
        per_day = self.limits_of(caller.name).upload_bytes_per_day
        if per_day is None:
            return
        rate = self._bytes.setdefault(caller.name, _Rate(per_day, _DAY_S, self._clock()))
        if rate.take(count, self._clock()) > 0:
            raise OverloadedError(
                f"the token {caller.name!r} may bring {per_day} bytes a day here, by uploads, imports and what is"
                " to be scored, and has: they come free again evenly over the day"
            )

    def is_noted(self, method: str) -> bool:
        """What changes something."""
        return method.rpartition("/")[2] not in READ_METHODS | COMPUTE_METHODS | ADMIN_READ_METHODS

    async def note(self, record: AuditRecord) -> None:
        """See `Access`."""
        try:
            await asyncio.to_thread(write_record, self._store, record)
        except Exception:
            self._failures.inc()
            logger.exception("a call is missing in the audit log", extra={"record": str(record)})

    async def refresh(self) -> None:
        """Read the tokens now, for one that has just changed here. Raises UnavailableError."""
        if not await self._refresh(0.0, patience_s=10.0):
            raise UnavailableError("the object store does not answer, so it is not known which tokens there are now")

    def limits_of(self, name: str) -> TokenLimits:
        """What the token of a caller may ask for; all, of the operator's."""
        found = self._table.named(name)
        return TokenLimits() if found is None else found.limits

    def tokens(self) -> list[AccessToken]:
        """All named tokens as they were last read, oldest first."""
        return self._table.tokens()

    async def _refresh(self, after_s: float, *, patience_s: float | None = None) -> bool:
        """Have the table read unless that was begun less than so many seconds ago; whether it was, and is read by now.

        One read serves all that wait for it; one that takes longer than their patience goes on without them.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        time_s = asyncio.get_running_loop().time
        is_begun = self._clock() - self._asked_at < after_s
        while self._reading is not None or not is_begun:
            if self._reading is None:
                is_begun, self._asked_at, self._reading_since = True, self._clock(), time_s()
                self._reading = asyncio.create_task(self._read())
            reading = self._reading
            await asyncio.wait({reading}, timeout=max(0.0, self._reading_since + patience_s - time_s()))
            if not reading.done():
                return False
        return self._read_at == self._asked_at

    async def _read(self) -> None:
        try:
            await asyncio.to_thread(self._table.read)
            self._read_at = self._asked_at
        except MadpoError as error:
            logger.warning("tokens cannot be read", extra={"error": str(error)})
        except Exception:
            logger.exception("tokens cannot be read")
        finally:
            self._reading = None

    def _require_known(self) -> None:
        """Raises UnavailableError where the table is too old to go by."""
        if self._clock() - self._read_at > self._max_age_s:
            raise UnavailableError("the object store does not answer, so it is not known which tokens are valid")

    def _take_call(self, token: AccessToken) -> None:
        per_minute = token.limits.calls_per_minute
        if per_minute is None:
            return
        rate = self._calls.setdefault(token.name, _Rate(per_minute, 60, self._clock()))
        if (wait_s := rate.take(1, self._clock())) > 0:
            raise OverloadedError(
                f"the token {token.name!r} may make {per_minute} calls a minute; try again in {wait_s:.1f} s", wait_s
            )


class _Rate:
    """A bucket that fills again at an even pace; a whole span's fill may be taken at once."""

    def __init__(self, size: int, span_s: float, now: float) -> None:
        self._size, self._per_second = size, size / span_s
        self._left, self._now = float(size), now

    def take(self, count: int, now: float) -> float:
        """Take so many; where not one is there, the seconds until there is one, and nothing is taken."""
        self._left = min(self._size, self._left + (now - self._now) * self._per_second)
        self._now = now
        if self._left < 1:
            return (1 - self._left) / self._per_second
        self._left -= count
        return 0.0


def _require_valid(token: AccessToken) -> None:
    if not token.is_valid(time.time()):
        what = "was revoked" if token.revoke_time is not None else "has expired"
        raise UnauthenticatedError(f"the token {token.name!r} {what} (an admin makes a new one: `madpo token create`)")
