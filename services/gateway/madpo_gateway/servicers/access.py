"""AccessService: named tokens, and what their holders did."""

import asyncio
import logging
import time
from typing import Any

from madpo.ports import ObjectStore
from madpo.rpc import convert
from madpo.rpc.access import current_caller
from madpo.storage.access_tokens import create_token, revoke_token
from madpo.storage.audit import read_records
from madpo.types import AccessToken, Role, TokenLimits
from madpo.v1 import access_service_pb2 as pb
from madpo.v1.access_service_pb2_grpc import AccessServiceServicer
from madpo_gateway.access import OPERATOR, GatewayAccess
from madpo_gateway.requests import page_size, require_match, violation

logger = logging.getLogger(__name__)

_LONGEST_S = 100 * 366 * 24 * 3600
"""Of a lifetime; one without end is none."""
_END_OF_TIME_S = 253_402_300_800
"""Of the calendar: the year 10000."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class AccessServicer(AccessServiceServicer):
    """Serves the tokens and the audit log of one object store."""

    def __init__(self, *, store: ObjectStore, access: GatewayAccess) -> None:
        self._store, self._access = store, access

    async def GetCaller(self, request: pb.GetCallerRequest, context: Any) -> pb.GetCallerResponse:  # noqa: N802
        """Whose token the call carries."""
        caller = current_caller()
        return pb.GetCallerResponse(name=caller.name, role=convert.role_to_proto(caller.role))

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:  # noqa: N802
        """Keep a token and hand out its secret, once."""
        name = require_match(request.name, NAME_PATTERN, field="name")
        if name == OPERATOR:
            raise violation("name", f"{OPERATOR} is the name of the token in the gateway's settings: take another")
        now = time.time()
        token = AccessToken(
            name,
            _role(request.role),
            create_time=now,
            expire_time=now + _lifetime_s(request) if request.HasField("lifetime") else None,
            created_by=current_caller().name,
            limits=_limits(request.limits),
        )
        secret = await asyncio.to_thread(create_token, self._store, token)
        logger.info("token created", extra={"token": name, "role": token.role.value})
        return pb.CreateTokenResponse(token=convert.token_to_proto(token), secret=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:  # noqa: N802
        """All named tokens, oldest first; also those that are not valid any more."""
        await self._access.refresh()
        return pb.ListTokensResponse(tokens=map(convert.token_to_proto, self._access.tokens()))

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.RevokeTokenResponse:  # noqa: N802
        """End a token; here at once."""
        name = require_match(request.name, NAME_PATTERN, field="name")
        if name == OPERATOR:
            raise violation("name", "is the token of the gateway's settings: change MADPO_GATEWAY_TOKEN and restart")
        token = await asyncio.to_thread(revoke_token, self._store, name)
        await self._access.refresh()
        logger.info("token revoked", extra={"token": name})
        return pb.RevokeTokenResponse(token=convert.token_to_proto(token))

    async def ListAuditRecords(  # noqa: N802
        self, request: pb.ListAuditRecordsRequest, context: Any
    ) -> pb.ListAuditRecordsResponse:
        """A page of the audit log."""
        records, token = await asyncio.to_thread(
            read_records,
            self._store,
            since=_since(request),
            caller=request.caller,
            page_size=page_size(request.page_size),
            page_token=request.page_token,
        )
        return pb.ListAuditRecordsResponse(records=map(convert.audit_record_to_proto, records), next_page_token=token)


def _role(value: "pb.Role") -> Role:
    role = convert.role_from_proto(value)
    if role is None:
        raise violation("role", f"must be one of {', '.join(role.value for role in Role)}")
    return role


def _lifetime_s(request: pb.CreateTokenRequest) -> float:
    lifetime_s = convert.span_s(request.lifetime)
    if not 0 < lifetime_s <= _LONGEST_S:
        raise violation("lifetime", f"must be longer than 0 s and at most {_LONGEST_S:,} s, got {lifetime_s} s")
    return lifetime_s


def _since(request: pb.ListAuditRecordsRequest) -> float:
    since = convert.seconds(request.since_time) if request.HasField("since_time") else 0.0
    if not 0 <= since < _END_OF_TIME_S:
        raise violation("since_time", f"must be a time from 1970 to 9999, got {since} s")
    return since


def _limits(limits: pb.TokenLimits) -> TokenLimits:
    given = {field.name: value for field, value in limits.ListFields()}
    for name, value in given.items():
        if value < 1:
            raise violation(f"limits.{name}", f"must be at least 1, got {value}; leave it out for no limit")
    return TokenLimits(**given)
