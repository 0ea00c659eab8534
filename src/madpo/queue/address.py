"""Where the queue's server is: a Redis by its URL, or whichever of several is the primary, as their sentinels say."""

import re
from typing import Any, Literal, overload
from urllib.parse import urlsplit

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.asyncio.connection import parse_url
from redis.backoff import NoBackoff

from madpo.errors import InvalidArgumentError

_RESERVED = re.compile(r"[\s/?#\[\]]")
_SENTINEL = re.compile(r"(?P<scheme>rediss?)\+sentinel")
_SENTINEL_PORT = 26379
_FORMS = (
    "redis_url must be redis://[:password@]host:port/0, rediss://..., unix:///path, or "
    "redis+sentinel://[:password@]host:port,host:port,.../PRIMARY/0"
)


def check_url(url: str) -> None:
    """Refuse a URL that would be read otherwise than it was meant.

    Raises:
        InvalidArgumentError: It is none of Redis, or its password ends at a character that URLs reserve. Nothing of it,
            nor of an error that may repeat it, is in the message.
    """
    scheme, _, rest = url.partition("://")
    sentinel = _SENTINEL.fullmatch(scheme)
    if scheme not in ("redis", "rediss", "unix") and not sentinel:
        raise InvalidArgumentError(_FORMS)
    credentials, found, _ = rest.rpartition("@")
    if found and scheme != "unix" and _RESERVED.search(credentials):
        raise InvalidArgumentError(
            "redis_url: user or password hold a character that URLs reserve (a space or one of / ? # [ ]): "
            "percent-encode it (# is %23, / is %2F, ? is %3F), or leave the password out and set redis_password"
        )
    try:
        _sentinels(url) if sentinel else parse_url(url)
    except ValueError:  # not repeated: it may name a part of the password
        raise InvalidArgumentError(_FORMS) from None


@overload
def connect_redis(
    url: str, *, password: str | None, sentinel_password: str | None, blocking: Literal[False] = ..., **options: Any
) -> "redis.asyncio.Redis": ...
@overload
def connect_redis(
    url: str, *, password: str | None, sentinel_password: str | None, blocking: Literal[True], **options: Any
) -> "redis.Redis": ...
def connect_redis(
    url: str, *, password: str | None, sentinel_password: str | None, blocking: bool = False, **options: Any
) -> Any:
    """A client of the server, or of the primary that sentinels name at each new connection; nothing is sent yet.

    Args:
        url: One that `check_url` lets pass. Its options, as `ssl_ca_certs`, are those of redis-py, for sentinels too.
        password: Of the server, where the URL holds none.
        sentinel_password: Of the sentinels, where they ask for one.
        blocking: A client without asyncio.
        options: Of every connection to the server.
    """
    library: Any = redis if blocking else redis.asyncio
    if not _SENTINEL.fullmatch(url.partition("://")[0]):
        return library.Redis.from_url(url, password=password, **options)
    hosts, primary, connection = _sentinels(url)
    shared = {name: value for name, value in connection.items() if name.startswith("ssl")}
    patience = {name: value for name, value in options.items() if name.startswith("socket_")}
    # Asked once: after the one there is the next, and the connection to the server is tried again as a whole.
    once = library.retry.Retry(NoBackoff(), 0)
    asked = {"password": sentinel_password, "retry": once, **patience, **shared}
    manager = library.sentinel.Sentinel(hosts, sentinel_kwargs=asked)
    return manager.master_for(primary, **{"password": password, **connection, **options})


def without_credentials(url: str) -> str:
    """The URL as somebody has it who knows no user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def server_name(client: "redis.Redis | redis.asyncio.Redis") -> str:
    """The URL of a client's server without user and password."""
    pool: Any = client.connection_pool
    options = pool.connection_kwargs
    database = options.get("db", 0)
    if (manager := getattr(pool, "sentinel_manager", None)) is not None:
        at = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        hosts = ",".join(f"{each['host']}:{each['port']}" for each in at)
        return f"redis+sentinel://{hosts}/{pool.service_name}/{database}"
    if "path" in options:
        return f"unix://{options['path']}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{database}"


async def close(client: "redis.asyncio.Redis") -> None:
    """Close a client, and those of its sentinels."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for each in (client, *(manager.sentinels if manager is not None else ())):
        await each.aclose()


def _sentinels(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The hosts of sentinels, the name they have for the primary, and how to connect to it.

    Raises:
        ValueError: The URL is not of the form.
    """
    parts = urlsplit(url)
    credentials, _, listed = parts.netloc.rpartition("@")
    primary, _, database = parts.path.strip("/").partition("/")
    hosts = [urlsplit(f"//{host}") for host in listed.split(",")]
    found = [(host.hostname, host.port or _SENTINEL_PORT) for host in hosts if host.hostname]
    if not primary or not re.fullmatch(r"\d*", database) or len(found) < len(hosts):
        raise ValueError(_FORMS)
    scheme = parts.scheme.removesuffix("+sentinel")
    connection = dict(parse_url(f"{scheme}://{credentials}@host/{database or 0}?{parts.query}"))
    del connection["host"]
    if connection.pop("connection_class", None) is not None:
        connection["ssl"] = True
    return found, primary, connection
