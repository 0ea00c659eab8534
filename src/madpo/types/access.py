"""Who calls: roles, named tokens, and what is noted of calls."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do; each role may do what those before it may."""

    READ = "read"
    """Look at everything and download it."""
    SUBMIT = "submit"
    """Upload, start, cancel, resume and delete."""
    ADMIN = "admin"
    """Tokens and the audit log."""

    def includes(self, other: "Role") -> bool:
        """Whether it may do what `other` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(other)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token a call carries."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What the holder of a token may ask for; None is no limit."""

    unfinished_jobs: int | None = None
    """Jobs of the token that are not over."""
    calls_per_minute: int | None = None
    """Of one gateway; as many at once may be ahead."""
    upload_bytes_per_day: int | None = None
    """Of uploads and imports, to one gateway; a whole day's may come at once."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A named token, without its secret. Times are seconds since the epoch."""

    name: str
    role: Role
    create_time: float
    expire_time: float | None = None
    revoke_time: float | None = None
    created_by: str = ""
    """Name of the caller that made it."""
    limits: TokenLimits = TokenLimits()

    def is_valid(self, now: float) -> bool:
        """Whether it opens anything at a time."""
        return self.revoke_time is None and (self.expire_time is None or now < self.expire_time)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One call that was to change something."""

    time: float
    """Of its end, in seconds since the epoch."""
    caller: str
    role: Role
    method: str
    """`JobService/CreateJob`."""
    code: str
    """Status code: `OK`, `PERMISSION_DENIED`."""
    subjects: tuple[str, ...]
    """What it was about, such as `job_id=job-...`."""
    request_id: str
    peer: str
    """Address it came from."""
