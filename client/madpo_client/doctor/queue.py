"""Redis: there, closed to others, and set up so that it loses no job."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from madpo.config import QueueSettings, revealed
from madpo.errors import InvalidArgumentError
from madpo.rpc.channel import is_loopback_host
from madpo_client.doctor.clock import compare_clocks
from madpo_client.doctor.findings import Finding, error, ok, unchecked, warning
from madpo_client.doctor.settings import Service

if TYPE_CHECKING:
    from redis import Redis

_TIMEOUT_S = 5.0
_OLDEST = (7, 0)
"""Oldest Redis the queue is tested with."""
_NEARLY_FULL = 0.9


def check_queue(service: Service, settings: QueueSettings) -> Iterator[Finding]:
    """Everything about the Redis of a service."""
    if skipped := unchecked("redis", "redis"):
        yield skipped
        return
    from redis import exceptions

    from madpo.queue.address import check_url, server_name
    from madpo.queue.server import refused_right

    try:
        check_url(settings.redis_url.get_secret_value())
    except InvalidArgumentError as wrong:
        yield error(
            "redis.reachable",
            str(wrong),
            f"set {service.variable('redis_url')} to redis://host:port/0, rediss://... or unix:///path",
        )
        return
    with _connect(settings) as client:
        where = server_name(client)
        try:
            start = time.monotonic()
            client.ping()
            yield ok("redis.reachable", f"{where} answers in {(time.monotonic() - start) * 1000:.1f} ms")
        except exceptions.RedisError as failure:
            yield _unreachable(service, where, failure)
            return
        yield _check_password(service, settings, where)
        try:
            yield _check_clock(client, where)
        except exceptions.NoPermissionError as denied:
            user = client.connection_pool.connection_kwargs.get("username") or "default"
            lacking = refused_right(denied, user=user)
            yield error("redis.permissions", f"{where}: {lacking}", "the queue needs it")
        try:
            facts: Mapping[str, Any] = client.info()
        except exceptions.ResponseError as denied:
            yield warning(
                "redis.settings",
                f"not checked: {where} refuses INFO ({denied})",
                "allow it (ACL SETUSER ... +info), or see at the provider that maxmemory-policy is noeviction and "
                "appendonly yes",
            )
            return
        yield from _check_facts(facts)
        yield _check_fsync(client, facts)


def _connect(settings: QueueSettings, *, with_credentials: bool = True) -> "Redis":
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from madpo.queue.address import connect_redis, without_credentials

    url = settings.redis_url.get_secret_value()
    return connect_redis(
        url if with_credentials else without_credentials(url),
        password=revealed(settings.redis_password) if with_credentials else None,
        sentinel_password=revealed(settings.redis_sentinel_password),
        blocking=True,
        decode_responses=True,
        protocol=2,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), retries=0),
    )


def _unreachable(service: Service, where: str, failure: Exception) -> Finding:
    from redis import exceptions

    from madpo.queue.server import is_wrong_password

    if is_wrong_password(failure):
        return error(
            "redis.password",
            f"{where} refuses the password",
            f"set {service.variable('redis_password')}, or the secret file of that name, to the server's requirepass",
        )
    if isinstance(failure, (exceptions.ConnectionError, exceptions.TimeoutError)):
        return error(
            "redis.reachable",
            f"no Redis at {where}: {failure}",
            f"start it, or correct {service.variable('redis_url')}; mind networks and policies in between",
        )
    return error("redis.reachable", f"{where} refuses to work: {failure}", "see its log")


def _check_password(service: Service, settings: QueueSettings, where: str) -> Finding:
    """Knock without credentials."""
    from redis import exceptions

    with _connect(settings, with_credentials=False) as stranger:
        try:
            stranger.ping()
        except exceptions.RedisError:
            return ok("redis.password", f"{where} asks for a password, and takes ours")
        options = stranger.connection_pool.connection_kwargs
    if "path" in options or is_loopback_host(options.get("host", "")):
        return ok("redis.password", f"{where} asks for no password, and is on this machine")
    return warning(
        "redis.password",
        f"{where} lets in everybody who reaches it",
        f"give it a requirepass, and {service.variable('redis_password')} the same",
    )


def _check_clock(client: "Redis", where: str) -> Finding:
    sent_time, start = time.time(), time.monotonic()
    seconds, microseconds = client.time()
    round_trip_s = time.monotonic() - start
    ahead_s = seconds + microseconds / 1e6 - (sent_time + round_trip_s / 2)
    return compare_clocks("redis.clock", f"Redis at {where}", ahead_s, uncertainty_s=round_trip_s / 2)


def _check_facts(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings in what INFO says; a section a provider leaves out is told as such."""
    yield _check_version(facts)
    if facts.get("redis_mode") == "cluster":
        yield error(
            "redis.mode", "this is a cluster; the queue's scripts need one server", "use a server without cluster mode"
        )
    if facts.get("role") == "slave":
        yield error("redis.mode", "this is a replica and takes no writes", "name the primary in the URL")
    policy = facts.get("maxmemory_policy", "not told")
    if policy == "noeviction":
        yield ok("redis.eviction", "maxmemory-policy is noeviction")
    else:
        yield error(
            "redis.eviction",
            f"maxmemory-policy is {policy}: a full server would throw jobs away",
            "set maxmemory-policy noeviction in redis.conf, or CONFIG SET it and CONFIG REWRITE",
        )
    used, limit = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    if limit and used > _NEARLY_FULL * limit:
        yield warning(
            "redis.memory", f"{used / limit:.0%} of maxmemory are used; a full server refuses jobs", "raise maxmemory"
        )
    if facts.get("aof_enabled"):
        yield ok("redis.persistence", "appendonly is yes")
    else:
        yield warning(
            "redis.persistence",
            "appendonly is no: a restart of Redis forgets attempts and events of jobs",
            "set appendonly yes and appendfsync everysec in redis.conf, with its directory on a volume",
        )
    if facts.get("aof_last_write_status", "ok") != "ok":
        yield error(
            "redis.disk", "the last write to the append-only file failed", "free space on Redis's volume; see its log"
        )


def _check_version(facts: Mapping[str, Any]) -> Finding:
    text = str(facts.get("redis_version", "0"))
    name = f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else f"Redis {text}"
    oldest = ".".join(map(str, _OLDEST))
    if tuple(int(part) for part in text.split(".")[:2] if part.isdigit()) < _OLDEST:
        return warning("redis.version", f"{name}; the queue is tested with {oldest} and newer", f"use Redis {oldest}")
    return ok("redis.version", name)


def _check_fsync(client: "Redis", facts: Mapping[str, Any]) -> Finding:
    from redis import exceptions

    try:
        fsync = client.config_get("appendfsync").get("appendfsync", "not told")
    except exceptions.ResponseError as denied:
        return warning(
            "redis.fsync",
            f"appendfsync not checked: CONFIG GET is refused ({denied})",
            "allow it (ACL SETUSER ... +config|get), or see at the provider that appendfsync is everysec or always",
        )
    if facts.get("aof_enabled") and fsync == "no":
        return warning(
            "redis.fsync",
            "appendfsync is no: a crash of the host may lose the last half minute of jobs' states",
            "set appendfsync everysec",
        )
    return ok("redis.fsync", f"appendfsync is {fsync}")
