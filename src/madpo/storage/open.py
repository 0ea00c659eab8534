"""The object store a service's settings name."""

from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from madpo.config import StoreSettings
from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError
from madpo.ports import ObjectStore
from madpo.storage import keys
from madpo.storage.local import LocalStore
from madpo.storage.s3 import S3Store
from madpo.storage.s3_errors import RefusedError

_PROBE_BYTES = 1 << 20
"""Small files may find room where no other does."""


def open_store(settings: StoreSettings) -> ObjectStore:
    """Open the object store and see that it answers.

    A missing directory or bucket is made.

    Raises:
        InvalidArgumentError: A setting is missing or malformed; names it.
        UnavailableError: The store does not answer.
        FailedPreconditionError: It refuses the credentials, or does not honour conditional writes.
    """
    store = named_store(settings)
    store.check()
    if isinstance(store, S3Store):
        check_conditional_writes(store, settings.s3_endpoint or "")
    return store


def named_store(settings: StoreSettings) -> S3Store | LocalStore:
    """The object store settings name, of which nothing is asked yet.

    Raises:
        InvalidArgumentError: A setting is missing or malformed; names it.
    """
    match urlsplit(settings.store_url).scheme:
        case "file":
            return LocalStore(_directory(settings.store_url))
        case "s3":
            return _s3_store(settings)
    raise InvalidArgumentError(f"store_url must be file:///dir or s3://bucket/prefix, got {settings.store_url!r}")


def check_use(store: ObjectStore) -> None:
    """See that the store can be read and takes what is written.

    Credentials that may not write the probe are let through.

    Raises:
        UnavailableError: It does not answer, or fails.
        OverloadedError: It is full.
    """
    store.check()
    key = keys.probe(uuid4().hex)
    try:
        store.put(key, bytes(_PROBE_BYTES))
    except RefusedError:
        return
    with suppress(MadpoError):  # without the right to delete, or away by now
        store.delete(key)


def check_conditional_writes(store: ObjectStore, name: str) -> None:
    """See that the store honours the conditions which keep two attempts at a job apart; some servers ignore them.

    Credentials that may not write are let through: they cannot overwrite either.

    Args:
        store: The store.
        name: What to call it in the message.

    Raises:
        FailedPreconditionError: It overwrites where it must refuse.
    """
    key = keys.probe(uuid4().hex)
    try:
        store.put(key, b"first")
    except RefusedError:
        return
    try:
        overwritten = store.put_if_absent(key, b"second") or store.put_if_match(key, b"third", "0" * 32) is not None
    finally:
        with suppress(RefusedError):  # credentials without the right to delete
            store.delete(key)
    if overwritten:
        raise FailedPreconditionError(
            f"object store {name} ignores If-None-Match or If-Match, so two runs could overwrite each other:"
            " use a server that honours conditional writes"
        )


def _directory(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise InvalidArgumentError(f"store_url must name an absolute directory as file:///dir, got {url!r}")
    return path


def _s3_store(settings: StoreSettings) -> S3Store:
    store, endpoint = urlsplit(settings.store_url), urlsplit(settings.s3_endpoint or "")
    prefix = store.path.strip("/")
    if not store.netloc:
        raise InvalidArgumentError(f"store_url must be s3://bucket/prefix, got {settings.store_url!r}")
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc or endpoint.path.strip("/"):
        raise InvalidArgumentError(f"s3_endpoint must be https://host:port, got {settings.s3_endpoint!r}")
    if settings.s3_access_key is None or settings.s3_secret_key is None:
        raise InvalidArgumentError("s3_access_key and s3_secret_key are needed for an s3:// store_url")
    return S3Store(
        store.netloc,
        endpoint=endpoint.netloc,
        secure=endpoint.scheme == "https",
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        prefix=keys.check_path(prefix) if prefix else "",
    )
