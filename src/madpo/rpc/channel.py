"""Client channels: balancing over replicas, retries, message limits and the token, the same for every client."""

import ipaddress
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import grpc

from madpo.rpc.tls import ClientTls

MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024
"""Largest message either side takes. Requests are split well under it before they are sent."""

CHUNK_BYTES = 512 * 1024
"""Size of the chunks of uploads and downloads."""

MAX_READ_ROWS = 50_000
"""Most rows of a dataset that one call reads."""

MAX_SCORED_ITEMS, MAX_SCORED_BYTES = 256, 4 * 1024 * 1024
"""Most pairs or responses, and most bytes of them, in one message of a scoring stream."""

VERSION_KEY, TIME_KEY = "madpo-version", "madpo-time"
"""Trailing metadata of a reply: the server's version, and its clock as the call came in, in seconds since the epoch."""

_BALANCING: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
_RETRYING: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}


def _options(*, retries: bool) -> tuple[tuple[str, str | int], ...]:
    return (
        ("grpc.service_config", json.dumps(_BALANCING | (_RETRYING if retries else {}))),
        ("grpc.enable_retries", int(retries)),
        ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),
        # Under the retries: a call begun while a server restarts must outlast the wait before the next connection.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    )


def is_loopback(target: str) -> bool:
    """Whether every address of a gRPC target is on this machine, whatever it is that answers there."""
    scheme, _, addresses = target.partition(":")
    if scheme == "unix":
        return True
    if scheme not in ("dns", "ipv4", "ipv6"):
        addresses = target
    return all(map(_is_local, addresses.rpartition("/")[2].split(",")))


def is_loopback_host(host: str) -> bool:
    """Whether a host name or address, without a port, never leaves this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local(address: str) -> bool:
    try:
        return is_loopback_host(urlsplit(f"//{address}").hostname or "")
    except ValueError:
        return False


def open_channel(target: str, *, tls: ClientTls | None = None, retries: bool = True) -> grpc.aio.Channel:
    """A channel to every replica behind a target.

    Args:
        target: `host:port` or `dns:///host:port`.
        tls: What to trust and to show; None talks in plain text.
        retries: Let gRPC repeat calls that met UNAVAILABLE; not for callers with retries of their own.
    """
    # A proxy of the environment is for the world outside.
    options = (*_options(retries=retries), ("grpc.enable_http_proxy", int(not is_loopback(target))))
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.credentials(), options=options)


def call_metadata(token: str | None, *, request_id: str | None = None) -> Sequence[tuple[str, str]]:
    """Metadata of a call: bearer token and request id."""
    metadata: list[tuple[str, str]] = []
    if token is not None:
        metadata.append(("authorization", f"Bearer {token}"))
    if request_id is not None:
        metadata.append(("x-request-id", request_id))
    return metadata
