"""Which services the environment configures."""

import os
from dataclasses import dataclass
from importlib import import_module

from madpo.config import ServiceSettings, load_settings

SERVICES = ("gateway", "reward", "trainer", "evaluator")


@dataclass(frozen=True, slots=True)
class Service:
    """A service and how it is configured here."""

    name: str
    settings: ServiceSettings

    def variable(self, field: str) -> str:
        """The environment variable of a setting."""
        return f"MADPO_{self.name.upper()}_{field.upper()}"


def configured_services() -> list[str]:
    """Names of the services that have at least one variable of theirs set."""
    return [name for name in SERVICES if any(key.startswith(f"MADPO_{name.upper()}_") for key in os.environ)]


def load_service(name: str) -> Service:
    """A service's settings, read as the service itself reads them.

    Raises:
        InvalidArgumentError: Names each wrong or missing variable.
    """
    settings_type = getattr(import_module(f"madpo_{name}.settings"), f"{name.capitalize()}Settings")
    return Service(name, load_settings(settings_type))


def is_container() -> bool:
    """Whether this process seems to run in a container."""
    # Podman and others say it in the variable alone where /run is a volume.
    variables = {"container", "KUBERNETES_SERVICE_HOST"}
    return bool(variables & os.environ.keys()) or any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
