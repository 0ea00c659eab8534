"""Certificates of services and the trust of their clients, from PEM files."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from madpo.config import ServiceSettings, WorkerSettings
from madpo.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client trusts, and the certificate it shows where servers ask for one."""

    ca: Path | None = None
    """Authority of the server's certificate; None trusts those of gRPC's own list."""
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises FailedPreconditionError when a file cannot be used."""
        if self.cert is not None and self.key is not None:
            check_certificate(self.cert, self.key)
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca) if self.ca else None,
            private_key=_read(self.key) if self.key else None,
            certificate_chain=_read(self.cert) if self.cert else None,
        )


def client_tls(settings: WorkerSettings) -> ClientTls | None:
    """How a worker talks to the reward service; None: in plain text."""
    return ClientTls(settings.tls_ca, settings.tls_cert, settings.tls_key) if settings.tls_ca else None


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """A service's own certificate, or None where it serves plain text.

    Raises:
        FailedPreconditionError: A file is missing or no PEM, or the key is another's.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    check_certificate(settings.tls_cert, settings.tls_key)
    client_ca = _read(settings.tls_client_ca) if settings.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(_read(settings.tls_key), _read(settings.tls_cert))],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def check_certificate(cert: Path, key: Path) -> None:
    """Certificate and key belong together.

    Raises:
        FailedPreconditionError: They do not; says what is wrong with which file.
    """
    for path in (cert, key):
        _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise FailedPreconditionError(f"{cert} and {key} are no certificate with its key: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error
