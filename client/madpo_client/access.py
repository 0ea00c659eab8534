"""Who may call a gateway, and who did what there."""

from collections.abc import Iterator
from functools import partial

from madpo.types import AccessToken, AuditRecord, Caller, Role, TokenLimits
from madpo_client.session import Session


class Access:
    """Named tokens of a gateway and its audit log; all but `caller` is for admins."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def caller(self) -> Caller:
        """Whose token this client sends, and its role. Raises UnauthenticatedError."""
        return self._session.run(self._session.gateway.get_caller())

    def create_token(
        self,
        name: str,
        *,
        role: Role | str = Role.SUBMIT,
        lifetime_s: float | None = None,
        unfinished_jobs: int | None = None,
        calls_per_minute: int | None = None,
        upload_bytes_per_day: int | None = None,
    ) -> tuple[AccessToken, str]:
        """A new token, and its secret, which is kept nowhere.

        Args:
            name: Lower-case letters, digits, `.`, `_`, `-`; never given before, since the audit log tells holders
                apart by it.
            role: `read` looks at everything; `submit` also uploads, starts, cancels and deletes; `admin` also makes
                tokens.
            lifetime_s: Seconds until it expires; None is never.
            unfinished_jobs: Most jobs of it that are not over; None is no limit.
            calls_per_minute: Most calls a minute to one gateway; None is no limit.
            upload_bytes_per_day: Most bytes a day that uploads and imports bring to one gateway; None is no limit.

        Raises:
            InvalidArgumentError: The name, the role or a limit is none.
            AlreadyExistsError: There is, or was, a token of this name.
            PermissionDeniedError: This client's token is not an admin's.
        """
        limits = TokenLimits(unfinished_jobs, calls_per_minute, upload_bytes_per_day)
        create = self._session.gateway.create_token(name, role=Role(role), lifetime_s=lifetime_s, limits=limits)
        return self._session.run(create)

    def tokens(self) -> list[AccessToken]:
        """All named tokens, oldest first; also those that were revoked or have expired."""
        return self._session.run(self._session.gateway.list_tokens())

    def revoke_token(self, name: str) -> AccessToken:
        """End a token for good: at every gateway within seconds. Raises NotFoundError, PermissionDeniedError."""
        return self._session.run(self._session.gateway.revoke_token(name))

    def audit(self, *, since: float | None = None, caller: str = "") -> Iterator[AuditRecord]:
        """Calls that were to change something, oldest first; refused ones too.

        Args:
            since: Seconds since the epoch; None is from the first.
            caller: Name of a token, to see no other's.

        Raises:
            PermissionDeniedError: This client's token is not an admin's.
        """
        return self._session.each(partial(self._session.gateway.list_audit_records, since=since, caller=caller))
