"""Prometheus metrics. The registry is passed in, never the global one; labels come from small closed sets."""

from importlib.metadata import version
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, start_http_server


def new_registry() -> CollectorRegistry:
    """A registry that already says which build this is."""
    registry = CollectorRegistry()
    Info("madpo_build", "Version of the running code", registry=registry).info({"version": version("madpo")})
    return registry


_CALL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""From a job looked up to a model uploaded."""


class RpcMetrics:
    """Calls by method and status code, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter("madpo_rpc_calls", "gRPC calls served", ["method", "code"], registry=registry)
        self.duration = Histogram(
            "madpo_rpc_duration_seconds",
            "Duration of gRPC calls served",
            ["method"],
            buckets=_CALL_BUCKETS_S,
            registry=registry,
        )


def serve_metrics(registry: CollectorRegistry, *, host: str, port: int) -> WSGIServer:
    """Serve `/metrics` in a daemon thread; `shutdown()` and `server_close()` the returned server to stop."""
    server, _ = start_http_server(port, addr=host, registry=registry)
    return server
