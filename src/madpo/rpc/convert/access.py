"""Callers, tokens and audit records: access_service.proto."""

from dataclasses import asdict

from madpo import types
from madpo.rpc.convert.times import seconds, timestamp
from madpo.v1 import access_service_pb2 as access

_ROLES = {
    types.Role.READ: access.ROLE_READ,
    types.Role.SUBMIT: access.ROLE_SUBMIT,
    types.Role.ADMIN: access.ROLE_ADMIN,
}


def role_to_proto(role: types.Role) -> "access.Role":
    """The same role."""
    return _ROLES[role]


def role_from_proto(role: "access.Role") -> types.Role | None:
    """The same role; None where none is given, or one that this version does not know."""
    return next((ours for ours, theirs in _ROLES.items() if theirs == role), None)


def token_to_proto(token: types.AccessToken) -> access.AccessToken:
    """All fields."""
    return access.AccessToken(
        name=token.name,
        role=role_to_proto(token.role),
        create_time=timestamp(token.create_time),
        expire_time=timestamp(token.expire_time),
        revoke_time=timestamp(token.revoke_time),
        created_by=token.created_by,
        limits=limits_to_proto(token.limits),
    )


def token_from_proto(token: access.AccessToken) -> types.AccessToken:
    """All fields. A role of a later version counts as the least."""
    return types.AccessToken(
        name=token.name,
        role=role_from_proto(token.role) or types.Role.READ,
        create_time=seconds(token.create_time),
        expire_time=seconds(token.expire_time) if token.HasField("expire_time") else None,
        revoke_time=seconds(token.revoke_time) if token.HasField("revoke_time") else None,
        created_by=token.created_by,
        limits=types.TokenLimits(**{field.name: value for field, value in token.limits.ListFields()}),
    )


def limits_to_proto(limits: types.TokenLimits) -> access.TokenLimits:
    """All fields."""
    return access.TokenLimits(**asdict(limits))


def audit_record_to_proto(record: types.AuditRecord) -> access.AuditRecord:
    """All fields."""
    return access.AuditRecord(
        time=timestamp(record.time),
        caller=record.caller,
        role=role_to_proto(record.role),
        method=record.method,
        code=record.code,
        subjects=record.subjects,
        request_id=record.request_id,
        peer=record.peer,
    )


def audit_record_from_proto(record: access.AuditRecord) -> types.AuditRecord:
    """All fields. A role of a later version counts as the least."""
    return types.AuditRecord(
        time=seconds(record.time),
        caller=record.caller,
        role=role_from_proto(record.role) or types.Role.READ,
        method=record.method,
        code=record.code,
        subjects=tuple(record.subjects),
        request_id=record.request_id,
        peer=record.peer,
    )
