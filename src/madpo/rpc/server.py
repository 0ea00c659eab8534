"""The one skeleton of every service: logging, metrics, gRPC server, health, start, wait, drain, stop."""

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from madpo.background import EssentialTask
from madpo.config import ServiceSettings, load_settings, log_format_of, revealed
from madpo.errors import MadpoError
from madpo.imports import lasting
from madpo.rpc.access import Access, SharedToken
from madpo.rpc.channel import MESSAGE_LIMIT_BYTES
from madpo.rpc.health import check_serving
from madpo.rpc.interceptors import CallInterceptor
from madpo.rpc.tls import check_files, server_credentials
from madpo.telemetry.logging import configure_logging
from madpo.telemetry.metrics import RpcMetrics, new_registry, serve_metrics

logger = logging.getLogger(__name__)


class Service(Protocol):
    """What the skeleton runs."""

    def add_to_server(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Register servicers; returns their full names, for health and reflection."""
        ...

    async def start(self) -> None:
        """Connect and warm up; the service counts as healthy once this returns."""
        ...

    async def stop(self) -> None:
        """Release everything; calls have drained by now."""
        ...


@runtime_checkable
class Guarded(Protocol):
    """A service that decides itself who may call it, instead of by one shared token."""

    access: Access


@runtime_checkable
class Watched(Protocol):
    """A service that may be unable to work though its process answers."""

    async def ailment(self) -> str | None:
        """Why it cannot work, found out by trying, within a time of its own; None where it can."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """A service that would rather turn a call away unseen than let it wait long to be looked at.

    Attributes:
        max_unseen_calls: When so many have arrived and wait to be looked at, gRPC itself turns more and more of the
            following away, with CANCELLED and at next to no cost; from twice as many on, all.
    """

    max_unseen_calls: int


_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # Clients reconnect, and so look names up again: replicas added later are used within seconds.
    ("grpc.max_connection_age_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A taken port is an error, never a silent share.
    ("grpc.so_reuseport", 0),
)


_PULSE_S = 10.0
"""Between two looks at whether a service can work."""
_OPEN_FILES = 65_536
_THREADS = 64
"""For calls to the store and files, which mostly wait; the default of a small machine is six."""


class RunningServer:
    """A service on its port. Use as a context in tests; `run_service` is for processes."""

    def __init__(
        self, service: Service, settings: ServiceSettings, *, token: str | None = None, registry: CollectorRegistry
    ) -> None:
        self._service, self._settings = service, settings
        access = service.access if isinstance(service, Guarded) else SharedToken(token)
        interceptor = CallInterceptor(access=access, metrics=RpcMetrics(registry))
        options: tuple[tuple[str, int], ...] = _SERVER_OPTIONS
        if isinstance(service, Prompt):
            options += (
                ("grpc.server.max_pending_requests", service.max_unseen_calls),
                ("grpc.server.max_pending_requests_hard_limit", 2 * service.max_unseen_calls),
            )
        self._server = grpc.aio.server(interceptors=[interceptor], options=options)
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._names = service.add_to_server(self._server)
        self._watch: EssentialTask | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen, warm up, then answer SERVING."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._settings.reflection:
            names = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        address = f"{self._settings.host}:{self._settings.port}"
        credentials = server_credentials(self._settings)
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        await self._service.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        if isinstance(self._service, Watched):
            self._watch = EssentialTask(self._follow(self._service), name="the look at health")

    async def stop(self) -> None:
        """Answer NOT_SERVING, let calls in flight finish, release the service."""
        if self._watch is not None:
            await self._watch.end()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(self._settings.grace_s)
        await self._service.stop()

    async def __aenter__(self) -> "RunningServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _follow(self, service: Watched) -> None:
        """Answer SERVING for as long as the service can work."""
        before: str | None = None
        while True:
            await asyncio.sleep(_PULSE_S)
            try:
                ailment = await service.ailment()
            except Exception as error:
                ailment = f"{type(error).__name__}: {error}"
            if ailment is not None and before is None:
                logger.error("cannot work", extra={"ailment": ailment})
                await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            elif ailment is None and before is not None:
                logger.info("can work again")
                await self._set_health(health_pb2.HealthCheckResponse.SERVING)
            before = ailment

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)


S = TypeVar("S", bound=ServiceSettings)


def run_service(
    name: str,
    settings_type: type[S],
    build: Callable[[S, CollectorRegistry], Service],
    *,
    token_field: str | None = None,
) -> int:
    """Run a service until SIGTERM or SIGINT; returns the exit code.

    With `health` on the command line, ask the one that runs with these settings instead: exit code 0 when it serves,
    else 1 with one line that says why.

    What ends it otherwise is one line on standard error, in JSON where logs are.

    Args:
        name: For logs: `reward`.
        settings_type: Read from the environment; a wrong setting ends the process with one clear line.
        build: Makes the service from settings and a metrics registry.
        token_field: Setting that holds the bearer token clients must send; None for services without clients, and for
            those that are `Guarded`.
    """

    def serve(settings: S) -> None:
        check_files(settings)
        raise_open_files()
        token = revealed(getattr(settings, token_field)) if token_field else None
        asyncio.run(_serve(name, settings, build, token))

    return run_process(name, settings_type, serve=serve, ask=check_serving)


def run_process(name: str, settings_type: type[S], *, serve: Callable[[S], None], ask: Callable[[S], None]) -> int:
    """What `run_service` does around the service, for one that speaks something else than gRPC.

    Args:
        name: For logs.
        settings_type: Read from the environment.
        serve: Runs the service until it is asked to stop.
        ask: Raises, with why, where the one that runs with these settings does not serve.
    """
    if sys.argv[1:] not in ([], ["health"]):
        print(f"usage: python -m madpo_{name} [health]", file=sys.stderr)
        return 2
    try:
        settings = load_settings(settings_type)
        if sys.argv[1:]:
            ask(settings)
            return 0
        configure_logging(service=name, level=settings.log_level, format=settings.log_format)
        serve(settings)
    except Exception as error:
        if sys.argv[1:] or log_format_of(settings_type) != "json":
            if not isinstance(error, MadpoError):
                raise
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        configure_logging(service=name, format="json")
        # Of an error that is ours, the text says all.
        unforeseen = None if isinstance(error, MadpoError) else error
        logger.critical("the service ends", exc_info=unforeseen, extra={"error": str(error)})
        return 1
    return 0


def raise_open_files() -> None:
    """Let this process have as many connections as the system lets it; shells give 1,024 to begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(name: str, settings: S, build: Callable[[S, CollectorRegistry], Service], token: str | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="call"))
    registry = new_registry()
    metrics = (
        serve_metrics(registry, host=settings.host, port=settings.metrics_port)
        if settings.metrics_port is not None
        else None
    )
    logger.info("starting", extra={"settings": settings.resolved()})
    with lasting():
        service = build(settings, registry)
    server = RunningServer(service, settings, token=token, registry=registry)
    try:
        starting = asyncio.ensure_future(server.start())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            logger.info("serving", extra={"service": name, "port": server.port})
            await stopping
        starting.cancel()
        logger.info("draining")
    finally:
        await server.stop()
        if metrics is not None:
            metrics.shutdown()
            metrics.server_close()
    logger.info("stopped")
