"""Whether a process of the stack answers."""

import http
import http.client
from pathlib import Path

import grpc

from madpo_client.embedded.plan import CONSOLE, REDIS, read_secret
from madpo_client.embedded.ports import HOST

_PROBE_TIMEOUT_S = 1.0


def is_serving(name: str, port: int, *, home: Path) -> bool:
    """Ask the process itself: PING for the queue, HTTP for the console, `grpc.health.v1` for the other services."""
    if name == CONSOLE:
        return _answers_http(port)
    return _answers_ping(port, read_secret(home, "redis_password")) if name == REDIS else _is_healthy(port)


def _answers_ping(port: int, password: str) -> bool:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    once = Retry(NoBackoff(), retries=0)
    client = redis.Redis(host=HOST, port=port, password=password, socket_timeout=_PROBE_TIMEOUT_S, retry=once)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _answers_http(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_healthy(port: int) -> bool:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
