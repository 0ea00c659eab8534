"""Who is logged in by a browser: a code that is good once opens a session, which stands for a token."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from madpo.errors import OverloadedError

CODE_S = 600.0
"""How long a code is good, in seconds."""
_MOST = 10_000
"""Sessions, and codes, at once."""


@dataclass(frozen=True, slots=True)
class _Grant:
    token: str
    ends_at: float


class Sessions:
    """Codes and sessions of this process; they end with it. Thread-safe.

    Args:
        session_s: How long a session lasts, in seconds.
        clock: Monotonic, in seconds.
    """

    def __init__(self, session_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._session_s, self._clock = session_s, clock
        self._codes: dict[str, _Grant] = {}
        self._sessions: dict[str, _Grant] = {}
        self._lock = threading.Lock()

    def issue_code(self, token: str) -> str:
        """A code that opens one session with this token. Raises OverloadedError."""
        return self._grant(self._codes, token, CODE_S)

    def redeem(self, code: str) -> str | None:
        """The session that a code opens, the first time it is given; None for any other."""
        with self._lock:
            grant = self._codes.pop(code, None)
        return self.open(grant.token) if grant is not None and grant.ends_at > self._clock() else None

    def open(self, token: str) -> str:
        """A new session with this token. Raises OverloadedError."""
        return self._grant(self._sessions, token, self._session_s)

    def token(self, session: str) -> str | None:
        """What a session stands for, while it lasts."""
        grant = self._sessions.get(session)
        return grant.token if grant is not None and grant.ends_at > self._clock() else None

    def close(self, session: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(session, None)

    def _grant(self, grants: dict[str, _Grant], token: str, lasting_s: float) -> str:
        with self._lock:
            now = self._clock()
            if len(grants) >= _MOST:
                for key in [key for key, grant in grants.items() if grant.ends_at <= now]:
                    del grants[key]
            if len(grants) >= _MOST:
                raise OverloadedError("too many browsers are logged in: try again later", 60.0)
            key = secrets.token_urlsafe(32)
            grants[key] = _Grant(token, now + lasting_s)
            return key
