"""The gateway as its clients see it, and the embedded stack where that is what they talk to."""

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

from madpo.errors import MadpoError, UnauthenticatedError
from madpo.jobs.registry import KINDS, QUEUES
from madpo.rpc.channel import is_loopback
from madpo.rpc.tls import ClientTls
from madpo.spelling import number_of
from madpo.types import WAITING_FOR_STORE, Job, JobState, ServerInfo
from madpo_client.client import Client
from madpo_client.connection import read_connection
from madpo_client.doctor.clock import compare_clocks
from madpo_client.doctor.findings import Finding, error, ok, warning
from madpo_client.settings import ClientSettings

_CALLS = 5
_SLOW_S = 0.5
_NEWEST_JOBS = 200
_IDLE_S = 60.0
"""A worker that is free takes a job within seconds."""
_EXPIRES_SOON_S = 14 * 86400.0
_TIMEOUT_S = 5.0


def check_gateway(settings: ClientSettings) -> Iterator[Finding]:
    """Everything that can be known from outside."""
    token_file = settings.token_file
    server = settings.server
    if server is None:
        connection = read_connection(settings.expanded_home)
        if connection is None:
            yield error(
                "gateway.reachable",
                f"no gateway is named, and no stack runs under {settings.expanded_home}",
                "name one by --server, MADPO_SERVER or --profile, or start a stack with `madpo up`",
            )
            return
        yield from _check_stack(settings.expanded_home)
        server, token_file = connection.server, token_file or Path(connection.token_file)
    yield from _check_token_file(token_file)
    try:
        client = Client(
            server,
            token_file=token_file,
            tls_ca=settings.tls_ca,
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            plaintext=settings.plaintext,
        )
    except MadpoError as wrong:
        yield error("gateway.reachable", str(wrong), "correct the option, the variable or the profile that names it")
        return
    with client:
        yield from check_connection(client)


def check_connection(client: Client) -> Iterator[Finding]:
    """What calls to a gateway tell about it."""
    yield _check_encryption(client)
    if client.tls is not None:
        yield from _check_certificate(client.server, client.tls)
    try:
        infos = [client.server_info() for _ in range(_CALLS)]
    except UnauthenticatedError as refused:
        yield ok("gateway.reachable", f"{client.server} answers")
        yield error(
            "gateway.token",
            f"{client.server} refuses the token: {refused}",
            "name the right file by --token-file or MADPO_TOKEN_FILE (`madpo init` wrote it as secrets/client_token)",
        )
        return
    except MadpoError as failure:
        yield error(
            "gateway.reachable",
            str(failure),
            f"does it run there, is {client.server} the right address, and do firewalls let you through?",
        )
        return
    yield ok("gateway.reachable", f"{client.server} answers")
    yield ok("gateway.token", "the token is accepted")
    yield _check_round_trip(infos)
    yield from _check_identity(infos[-1], client.server)
    yield from _check_queues(client, now=time.time() + (infos[-1].clock_ahead_s or 0.0))


def _check_token_file(path: Path | None) -> Iterator[Finding]:
    if path is None:
        yield warning("gateway.token_file", "no token file is named", "name it by --token-file or MADPO_TOKEN_FILE")
        return
    path = path.expanduser()
    if path.is_file() and path.stat().st_mode & 0o077:
        yield warning("gateway.token_file", f"others on this machine may read {path}", f"chmod 600 {path}")


def _check_encryption(client: Client) -> Finding:
    if client.tls is not None:
        return ok("gateway.tls", f"TLS; trusted by {client.tls.ca or 'the authorities of this system'}")
    if is_loopback(client.server):
        return ok("gateway.tls", "plain text, on this machine only")
    return warning(
        "gateway.tls",
        f"plain text to {client.server}: anybody on the way reads the token and the data",
        "give the gateway a certificate (docs/deployment.md, TLS), and leave out --plaintext",
    )


def _check_certificate(server: str, tls: ClientTls) -> Iterator[Finding]:
    """When the certificate ends; other faults of it show better in calls to the gateway."""
    host, _, port = server.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.set_alpn_protocols(["h2"])
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key)
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as encrypted,
        ):
            end = str((encrypted.getpeercert() or {})["notAfter"])
    except (OSError, ValueError):
        return
    days_left = (ssl.cert_time_to_seconds(end) - time.time()) / 86400
    if days_left * 86400 > _EXPIRES_SOON_S:
        yield ok("gateway.certificate", f"valid until {end}")
    else:
        yield warning(
            "gateway.certificate",
            f"it ends in {days_left:.0f} days, on {end}",
            "renew it (docs/deployment.md, TLS) and restart the gateway",
        )


def _check_round_trip(infos: Sequence[ServerInfo]) -> Finding:
    """The first call also opens the connection."""
    typical_s = median(info.round_trip_s for info in infos[1:])
    message = f"a call takes {typical_s * 1000:.0f} ms"
    if typical_s < _SLOW_S:
        return ok("gateway.round_trip", message)
    return warning("gateway.round_trip", message, "look at the load of the gateway, Redis and the network in between")


def _check_identity(info: ServerInfo, server: str) -> Iterator[Finding]:
    ours = version("madpo")
    if info.version == ours:
        yield ok("gateway.version", f"madpo {ours} on both sides")
    else:
        yield warning(
            "gateway.version",
            f"madpo {ours} here, {info.version or 'a version that does not say'} at the gateway",
            "install the same version on both sides; upgrade the gateway first",
        )
    if info.clock_ahead_s is not None:
        yield compare_clocks(
            "gateway.clock", f"the gateway at {server}", info.clock_ahead_s, uncertainty_s=info.round_trip_s / 2
        )


def _check_queues(client: Client, *, now: float) -> Iterator[Finding]:
    jobs = [handle.job for handle in client.jobs.list(limit=_NEWEST_JOBS)]
    for queue in QUEUES:
        yield judge_queue(queue, [job for job in jobs if KINDS[job.kind].queue == queue], now=now)


def judge_queue(queue: str, jobs: Sequence[Job], *, now: float) -> Finding:
    """Whether somebody takes the jobs of a queue, as far as its jobs tell.

    Args:
        queue: Its name.
        jobs: Its newest jobs.
        now: Seconds since the epoch, by the clock of the jobs' times.
    """
    at_work = {job.job_id: job.progress for job in jobs if job.state is JobState.RUNNING}
    running = len(at_work)
    pending = [job for job in jobs if job.state is JobState.PENDING]
    # Of the others it is not known since when they could be taken: after a dependency, or a worker that stopped.
    never_taken = [job for job in pending if not job.depends_on and not job.attempt]
    waited_s = max((now - job.create_time for job in never_taken), default=0.0)
    check = f"gateway.queue.{queue}"
    stuck = [job_id for job_id, progress in at_work.items() if progress and progress.phase == WAITING_FOR_STORE]
    if stuck:
        return error(
            check,
            f"{number_of(len(stuck), 'job')} waiting for the object store: {', '.join(stuck[:5])}",
            "it is away, full or refuses the worker: `madpo job log` says which; mended, the jobs go on by themselves",
        )
    if not running and waited_s > _IDLE_S:
        worker = {"train": "trainer", "evaluate": "evaluator"}[queue]
        return warning(
            check,
            f"{number_of(len(pending), 'job')} pending, the first for {waited_s:.0f} s, and none running:"
            f" no {worker} takes them",
            f"see whether a {worker} runs and what its log says; `madpo doctor --inside` in its container",
        )
    return ok(check, f"{running} jobs running, {len(pending)} pending")


def _check_stack(home: Path) -> Iterator[Finding]:
    from madpo_client.embedded import EmbeddedStack

    stack = EmbeddedStack(home)
    statuses = stack.status()
    if not statuses:
        yield error(
            "stack", f"no stack runs under {home}, though one left its address there", "start it with `madpo up`"
        )
    for status in statuses:
        process, check = status.process, f"stack.{status.process.name}"
        if status.is_serving:
            yield ok(check, f"serves on port {process.port}")
        else:
            yield error(check, process.failure or "does not answer", f"see {process.log}")
