"""All checks of the machine or container a service runs in."""

from collections.abc import Iterator
from pathlib import Path

from madpo.config import QueueSettings, ScorerSettings, StoreSettings
from madpo.errors import InvalidArgumentError, MadpoError
from madpo_client.doctor.findings import Finding, error, ok, under, warning
from madpo_client.doctor.gpu import check_gpus
from madpo_client.doctor.host import check_confinement, check_directory, check_ports, check_shared_memory
from madpo_client.doctor.queue import check_queue
from madpo_client.doctor.reward import check_reward
from madpo_client.doctor.settings import Service, configured_services, is_container, load_service
from madpo_client.doctor.store import check_store
from madpo_client.doctor.versions import check_versions

_DIRECTORIES = ("scratch", "cache", "workspace")
"""Settings that name local directories."""


def check_inside() -> Iterator[Finding]:
    """The host, then every service the environment configures."""
    names = configured_services()
    if names:
        yield ok("host.services", f"configured here: {', '.join(names)}")
    else:
        yield warning(
            "host.services",
            "no MADPO_<SERVICE>_... variable is set, so no service is looked at",
            "run this where a service runs: `docker compose exec trainer madpo doctor --inside`",
        )
    yield from under("host", check_confinement(in_container=is_container()))
    if names != ["gateway"]:
        yield from under("host", check_gpus())
    if not names or "trainer" in names:
        yield from under("host", [check_shared_memory()])
    for name in names:
        try:
            service = load_service(name)
        except InvalidArgumentError as wrong:
            yield error(f"{name}.settings", str(wrong), "correct what it names; services/*/README.md list the settings")
        else:
            yield from under(name, check_service(service))


def check_service(service: Service) -> Iterator[Finding]:
    """Everything about one service whose settings are right."""
    from madpo.rpc.tls import check_files

    settings = service.settings
    yield ok("settings", "all variables are understood")
    yield from check_versions(service.name)
    try:
        check_files(settings)
        yield ok("tls", "serves TLS" if settings.tls_cert else "serves plain text")
    except MadpoError as wrong:
        yield error("tls", str(wrong), "make certificates with scripts/make_ca.sh, and restart the service")
    yield from check_ports(service)
    for field in _DIRECTORIES:
        directory: Path | None = getattr(settings, field, None)
        if directory is not None:
            yield check_directory(field, directory)
    if isinstance(settings, StoreSettings):
        yield from check_store(service, settings)
    if isinstance(settings, QueueSettings):
        yield from check_queue(service, settings)
    if isinstance(settings, ScorerSettings):
        yield from check_reward(service, settings)
