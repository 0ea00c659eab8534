"""Versions of the packages a service works with."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from madpo_client.doctor.findings import Finding, error, ok

_SERVICE = ("grpcio", "protobuf", "pydantic", "minio", "pyarrow", "prometheus-client", "structlog")
_MODEL = ("torch", "transformers", "safetensors", "peft")
_PACKAGES = {
    "gateway": (*_SERVICE, "redis"),
    "reward": (*_SERVICE, *_MODEL),
    "trainer": (*_SERVICE, "redis", *_MODEL),
    "evaluator": (*_SERVICE, "redis", *_MODEL, "matplotlib"),
}


def check_versions(service: str) -> Iterator[Finding]:
    """The packages of a service are there; says which versions."""
    found, missing = [f"madpo {version('madpo')}", f"Python {platform.python_version()}"], []
    for package in _PACKAGES[service]:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        yield error("packages", f"not installed: {', '.join(missing)}", f"pip install 'madpo[{service}]'")
    yield ok("versions", ", ".join(found))
