"""Named tokens in the object store: who may call, as what, until when. Of a secret only its digest is kept."""

import hashlib
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from madpo.errors import AlreadyExistsError, CorruptObjectError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.types import AccessToken, Role, TokenLimits

logger = logging.getLogger(__name__)

_SECRET_BYTES = 32
_PREFIX = "madpo_"
"""Tells scanners of source code and logs what they found."""


def secret_digest(secret: str) -> str:
    """What is kept of a secret. One of 256 random bits needs no slow hash: nobody can try them all."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(store: ObjectStore, token: AccessToken) -> str:
    """Keep a new token and return its secret, which is kept nowhere.

    Raises:
        AlreadyExistsError: The name was given before, also to a token that was revoked since: what the audit log says
            of a name is about one holder.
    """
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    body = documents.seal(_to_body(token, secret_digest(secret)))
    if not store.put_if_absent(keys.access_token(token.name), body):
        raise AlreadyExistsError(f"there is, or was, a token named {token.name!r}: give another name")
    return secret


def revoke_token(store: ObjectStore, name: str) -> AccessToken:
    """End a token for good. Raises NotFoundError."""
    key = keys.access_token(name)
    while True:  # a lost race means that another call revoked it: finite
        try:
            data, etag = store.get_with_etag(key)
        except NotFoundError:
            raise NotFoundError(f"there is no token named {name!r}; `madpo token list` shows them") from None
        token, digest = _from_document(data, key)
        if token.revoke_time is not None:
            return token
        token = replace(token, revoke_time=time.time())
        if store.put_if_match(key, documents.seal(_to_body(token, digest)), etag) is not None:
            return token


class TokenTable:
    """The tokens of a store by the digests of their secrets, as they were when it was last read. Blocking."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[str, tuple[str, AccessToken, str]] = {}
        self._by_digest: Mapping[str, AccessToken] = {}

    def read(self) -> None:
        """Learn what has changed; on an error everything stays as it was. Raises UnavailableError."""
        known = {}
        for info in self._store.list(f"{keys.ACCESS_TOKENS}/"):
            before = self._known.get(info.key)
            if before is not None and before[0] == info.etag:
                known[info.key] = before
                continue
            try:
                data, etag = self._store.get_with_etag(info.key)
                known[info.key] = (etag, *_from_document(data, info.key))
            except (CorruptObjectError, UnknownFormatError) as error:
                logger.error("access token cannot be used", extra={"key": info.key, "error": str(error)})
            except NotFoundError:
                continue  # removed meanwhile
        self._known = known
        self._by_digest = {digest: token for _, token, digest in known.values()}

    def find(self, secret: str) -> AccessToken | None:
        """The token of a secret, whether it is still valid or not."""
        return self._by_digest.get(secret_digest(secret))

    def named(self, name: str) -> AccessToken | None:
        """The token of a name."""
        found = self._known.get(keys.access_token(name))
        return found and found[1]

    def tokens(self) -> list[AccessToken]:
        """All of them, oldest first."""
        return sorted((token for _, token, _ in self._known.values()), key=lambda token: token.create_time)


def _to_body(token: AccessToken, digest: str) -> dict[str, Any]:
    return {**asdict(token), "secret_sha256": digest}


def _from_document(data: bytes, key: str) -> tuple[AccessToken, str]:
    body = documents.unseal(data, key=key)
    with documents.reading(key):
        limits = TokenLimits(**documents.known_fields(TokenLimits, body["limits"]))
        fields = documents.known_fields(AccessToken, body) | {"role": Role(body["role"]), "limits": limits}
        return AccessToken(**fields), body["secret_sha256"]
