"""The object store itself, for commands that need no gateway: that of a service configured here, or of a home."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madpo.config import BackupSettings, QueueSettings, StoreSettings, load_settings
from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo_client.settings import ClientSettings

if TYPE_CHECKING:
    from madpo.ports import ObjectStore


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """Where a store is, and a directory for large temporary files; `home` where it is an embedded stack's."""

    settings: StoreSettings
    scratch: Path
    home: Path | None = None

    def store(self) -> "ObjectStore":
        """The store, opened."""
        from madpo.storage.open import open_store

        return open_store(self.settings)

    def require_store(self) -> None:
        """See that the home is one: opened, a store is made where there is none. Raises NotFoundError."""
        if self.home is not None and not (self.home / "store").is_dir():
            raise NotFoundError(f"{self.home} is no home of a stack: give it by --home or MADPO_HOME")


def find_store(home: Path | None) -> StoreAccess:
    """The store of a home that is named, else that a service is configured with here, else of the usual home.

    Raises:
        InvalidArgumentError: A setting of the service is wrong; names it.
    """
    from madpo_client.doctor.settings import configured_services, load_service

    for name in () if home else configured_services():
        try:
            settings = load_service(name).settings
        except InvalidArgumentError as error:
            if f"MADPO_{name.upper()}_STORE_URL" in (violation.field for violation in error.violations):
                continue  # names no store: it is an option for the service of an embedded stack
            raise
        if isinstance(settings, StoreSettings):
            local = (getattr(settings, field, None) for field in ("scratch", "workspace", "cache"))
            return StoreAccess(settings, next(path for path in local if path is not None))
    home = (home or ClientSettings().expanded_home).expanduser().absolute()
    return StoreAccess(load_settings(StoreSettings, store_url=(home / "store").as_uri()), home / "work", home)


def open_place(place: str, access: StoreAccess) -> "ObjectStore":
    """The place of backups: a directory, or `s3://bucket/prefix`, by default with the store's endpoint and credentials.

    Raises:
        InvalidArgumentError: It is the store itself, a part of it, or holds it.
    """
    from madpo.storage.open import open_store

    url = place if "://" in place else Path(place).expanduser().absolute().as_uri()
    settings = load_settings(BackupSettings, store_url=url)
    if url.startswith("s3://") and settings.s3_endpoint is None:
        found = {
            name: getattr(access.settings, name) for name in type(access.settings).model_fields if name[:3] == "s3_"
        }
        settings = settings.model_copy(update=found)
    ours, theirs = (_address(each) for each in (access.settings, settings))
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise InvalidArgumentError(f"{place} is where the store is ({access.settings.store_url}): back up elsewhere")
    return open_store(settings)


def require_idle(access: StoreAccess) -> None:
    """See that nothing runs on the store, and that no queue would be beside it that knows other jobs.

    Raises:
        FailedPreconditionError: The embedded stack runs, or the queue has jobs.
    """
    if access.home is not None:
        _require_idle_home(access.home)
    elif isinstance(access.settings, QueueSettings) and asyncio.run(_has_jobs(access.settings)):
        raise FailedPreconditionError(
            "the queue has jobs: stop all services and empty it (`redis-cli FLUSHDB`), the gateway fills it again"
        )


def _require_idle_home(home: Path) -> None:
    from madpo_client.embedded import lock
    from madpo_client.embedded.home import check_home, close_home

    if lock.is_held(home):
        raise FailedPreconditionError(f"a madpo stack runs under {home}: stop it first (`madpo down`)")
    close_home(home)
    check_home(home)
    if any((home / "redis").glob("appendonlydir/*")):
        raise FailedPreconditionError(
            f"{home / 'redis'} holds a queue, which knows other jobs than the backup: move it elsewhere, or give "
            "another home (--home or MADPO_HOME)"
        )


async def _has_jobs(settings: QueueSettings) -> bool:
    from madpo.queue.queue import open_queue

    queue = open_queue(settings)
    try:
        return bool((await queue.list(page_size=1))[0])
    finally:
        await queue.close()


def _address(settings: StoreSettings) -> str:
    """Of a store, with a slash at its end; one that holds another is the beginning of its."""
    url = settings.store_url.rstrip("/") + "/"
    return url if url.startswith("file:") else f"{settings.s3_endpoint} {url}"
