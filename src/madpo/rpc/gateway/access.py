"""Named tokens of a gateway, and its audit log."""

from functools import cached_property

from madpo import types
from madpo.rpc import convert
from madpo.rpc.gateway.calls import GatewayCalls
from madpo.v1 import access_service_pb2 as access
from madpo.v1.access_service_pb2_grpc import AccessServiceStub


class AccessCalls(GatewayCalls):
    """The calls of `AccessService`."""

    @cached_property
    def _access(self) -> AccessServiceStub:
        return AccessServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def get_caller(self) -> types.Caller:
        """Whose token this client sends. Raises UnauthenticatedError."""
        response = await self.call(self._access.GetCaller, access.GetCallerRequest())
        return types.Caller(response.name, convert.role_from_proto(response.role) or types.Role.READ)

    async def create_token(
        self, name: str, *, role: types.Role, lifetime_s: float | None, limits: types.TokenLimits
    ) -> tuple[types.AccessToken, str]:
        """A new token and its secret. Raises AlreadyExistsError, PermissionDeniedError."""
        request = access.CreateTokenRequest(
            name=name,
            role=convert.role_to_proto(role),
            lifetime=None if lifetime_s is None else convert.duration(lifetime_s),
            limits=convert.limits_to_proto(limits),
        )
        response = await self.call(self._access.CreateToken, request)
        return convert.token_from_proto(response.token), response.secret

    async def list_tokens(self) -> list[types.AccessToken]:
        """All named tokens, oldest first. Raises PermissionDeniedError."""
        response = await self.call(self._access.ListTokens, access.ListTokensRequest())
        return [convert.token_from_proto(token) for token in response.tokens]

    async def revoke_token(self, name: str) -> types.AccessToken:
        """Raises NotFoundError, PermissionDeniedError."""
        response = await self.call(self._access.RevokeToken, access.RevokeTokenRequest(name=name))
        return convert.token_from_proto(response.token)

    async def list_audit_records(
        self, *, since: float | None = None, caller: str = "", page_size: int = 200, page_token: str = ""
    ) -> tuple[list[types.AuditRecord], str]:
        """One page, oldest first, with the token of the next ("" at the end). Raises PermissionDeniedError."""
        request = access.ListAuditRecordsRequest(
            since_time=convert.timestamp(since), caller=caller, page_size=page_size, page_token=page_token
        )
        response = await self.call(self._access.ListAuditRecords, request)
        return [convert.audit_record_from_proto(record) for record in response.records], response.next_page_token
