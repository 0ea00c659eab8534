"""The machine or container a service runs in: shared memory, disks, confinement, ports."""

import errno
import os
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from madpo.errors import MadpoError
from madpo_client.doctor.findings import Finding, error, ok, unchecked, warning
from madpo_client.doctor.settings import Service

_GIB = 2**30
_SHARED_MEMORY_BYTES = _GIB
_SCARCE_BYTES, _TOO_LITTLE_BYTES = 10 * _GIB, _GIB


def check_shared_memory(path: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - not a temporary file
    """Enough for the ranks of a training, which pass tensors through it."""
    try:
        size_bytes = shutil.disk_usage(path).total
    except OSError as failure:
        return warning("shared_memory", f"{path} cannot be looked at: {failure.strerror}", "mount a tmpfs there")
    if size_bytes < _SHARED_MEMORY_BYTES:
        return warning(
            "shared_memory",
            f"{path} has {size_bytes / 2**20:.0f} MiB: a training over several ranks may die of a bus error",
            "give it 1 GiB or more (compose: shm_size; Kubernetes: an emptyDir with medium Memory at /dev/shm)",
        )
    return ok("shared_memory", f"{path} has {size_bytes / _GIB:.1f} GiB")


def check_confinement(*, in_container: bool, root: Path = Path("/")) -> Iterator[Finding]:
    """What a container should not be able to do."""
    if not in_container:
        yield ok("confinement", "not in a container")
        return
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        yield ok("root_filesystem", "the root file system is read-only")
    else:
        yield warning(
            "root_filesystem",
            "the root file system can be written to",
            "start the container read-only (compose: read_only; Kubernetes: readOnlyRootFilesystem)",
        )
    if os.geteuid() == 0:
        yield warning(
            "user", "this is root", "run the container as another user (compose: user; Kubernetes: runAsUser)"
        )
    else:
        yield ok("user", f"user {os.geteuid()}, not root")


def check_directory(check: str, path: Path) -> Finding:
    """Can be written to, and has room; a missing one is judged by the directory it would be made in."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"madpo")
            file.flush()
            os.fsync(file.fileno())
        free_bytes = shutil.disk_usage(existing).free
    except OSError as failure:
        return error(
            check,
            f"{path} cannot be written to: {failure.strerror}",
            f"mount a volume there that user {os.geteuid()} may write to",
        )
    message = f"{path} has {free_bytes / _GIB:.1f} GiB free"
    advice = "free some space, or mount a larger volume there: models and checkpoints pass through it"
    if free_bytes < _TOO_LITTLE_BYTES:
        return error(check, message, advice)
    return warning(check, message, advice) if free_bytes < _SCARCE_BYTES else ok(check, message)


def check_ports(service: Service) -> Iterator[Finding]:
    """A service's ports are free, or held by the service."""
    settings = service.settings
    yield unchecked("port", "grpc_health") or _check_port(service)
    if settings.metrics_port is not None:
        yield _check_metrics_port(service, settings.metrics_port)


def _check_port(service: Service) -> Finding:
    from madpo.rpc.health import check_serving

    settings = service.settings
    if not settings.port:
        return ok("port", "the service takes any free port")
    failure = _bind(settings.host, settings.port)
    if failure is None:
        return ok("port", f"port {settings.port} is free: the service does not run here now")
    if failure.errno != errno.EADDRINUSE:
        return _unusable("port", service, "port", failure)
    try:
        check_serving(settings)
    except MadpoError as not_serving:
        return error(
            "port",
            f"port {settings.port} is taken, and not by a healthy {service.name}: {not_serving}",
            "see its log if it is starting or draining; else end the other program (`ss -ltnp` names it), "
            f"or set {service.variable('port')}",
        )
    return ok("port", f"the service serves on port {settings.port}")


def _check_metrics_port(service: Service, port: int) -> Finding:
    failure = _bind(service.settings.host, port)
    if failure is None:
        return ok("metrics_port", f"port {port} is free: the service does not run here now")
    if failure.errno != errno.EADDRINUSE:
        return _unusable("metrics_port", service, "metrics_port", failure)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{_local(service.settings.host)}:{port}/metrics", timeout=5) as reply:
            is_ours = b"madpo_build_info" in reply.read()
    except (OSError, ValueError):  # ValueError: no HTTP is spoken there
        is_ours = False
    if is_ours:
        return ok("metrics_port", f"metrics are served on port {port}")
    return error(
        "metrics_port",
        f"port {port} is taken, and not by madpo's metrics",
        f"end the other program (`ss -ltnp` names it), or set {service.variable('metrics_port')}",
    )


def _unusable(check: str, service: Service, field: str, failure: OSError) -> Finding:
    address = f"{service.settings.host}:{getattr(service.settings, field)}"
    return error(
        check,
        f"nobody can listen on {address} here: {failure.strerror}",
        f"set {service.variable('host')} to an address of this machine and {service.variable(field)} above 1023",
    )


def _bind(host: str, port: int) -> OSError | None:
    """Why the address cannot be listened on; None when it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as failure:
        return failure
    return None


def _local(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}.get(host, host)  # noqa: S104 - not listened on
