"""Certificates of services and the trust of their clients, from PEM files; and what a failed handshake means.

Files are read and checked when a process starts: one that is missing, expired or of another key ends it with a line
that names the file. Renewed files are picked up by a restart.
"""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from madpo.config import ScorerSettings, ServiceSettings
from madpo.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a client trusts, and the certificate it shows where servers ask for one."""

    ca: Path | None = None
    """Authority of the server's certificate; None trusts those of this system."""
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises FailedPreconditionError when a file cannot be used."""
        if self.ca is not None:
            _check_authority(self.ca)
        if self.cert is not None and self.key is not None:
            _load(_client_context(), self.cert, self.key)
        # Without a system list gRPC falls back on one of its own.
        roots = self.ca or ssl.get_default_verify_paths().cafile
        return grpc.ssl_channel_credentials(
            root_certificates=_read(Path(roots)) if roots else None,
            private_key=_read(self.key) if self.key else None,
            certificate_chain=_read(self.cert) if self.cert else None,
        )


def client_tls(settings: ScorerSettings) -> ClientTls | None:
    """How a service talks to the reward service; None: in plain text."""
    return ClientTls(settings.tls_ca, settings.tls_cert, settings.tls_key) if settings.tls_ca else None


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """A service's own certificate, or None where it serves plain text.

    Raises:
        FailedPreconditionError: See `check_files`.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    check_files(settings)
    client_ca = _read(settings.tls_client_ca) if settings.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(_read(settings.tls_key), _read(settings.tls_cert))],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def check_files(settings: ServiceSettings) -> None:
    """Check every certificate, key and authority of a service's settings.

    Raises:
        FailedPreconditionError: A file is missing, no PEM, expired or not yet valid; the key is another's; or the
            service's own certificate is not one its `tls_client_ca` lets in (it shows it to itself, for health).
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        certificate_names(settings.tls_cert, settings.tls_key, client_ca=settings.tls_client_ca)
    if isinstance(settings, ScorerSettings) and settings.tls_ca is not None:
        _check_authority(settings.tls_ca)


def certificate_names(cert: Path, key: Path, *, client_ca: Path | None = None) -> list[str]:
    """The names a certificate is for, found by a handshake of a server and a client that have it, in memory.

    Args:
        cert: Certificate chain, its own certificate first.
        key: Of the first certificate.
        client_ca: The server's authority for clients; then the client shows the same certificate.

    Raises:
        FailedPreconditionError: The handshake fails; says which file is to blame.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _client_context()
    _load(server, cert, key)
    # The certificate itself is trusted: who signed it is for clients to judge.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cert)
    if client_ca is not None:
        _check_authority(client_ca)
        server.load_verify_locations(client_ca)
        server.verify_mode = ssl.CERT_REQUIRED
        _load(client, cert, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(to_client, to_server)
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(2):
        _advance(client_side, f"{cert} cannot be used")
        _advance(server_side, f"{cert} is not accepted by {client_ca}")
    names: Any = (client_side.getpeercert() or {}).get("subjectAltName", ())
    return [value for kind, value in names if kind in ("DNS", "IP Address")]


def explain_handshake(details: str) -> str | None:
    """What is wrong with a connection that failed for its TLS, and what to do; None when that is not why.

    Args:
        details: The status text of a call that ended UNAVAILABLE.
    """
    return next((meaning for sign, meaning in _HANDSHAKE_FAILURES if sign in details), None)


_HANDSHAKE_FAILURES = (
    ("certificate has expired", "its certificate has expired; renew it and restart the service"),
    ("certificate is not yet valid", "its certificate is not valid yet; compare the clocks of both machines"),
    (
        "Hostname Verification Check failed",
        "its certificate is for other names; use one of those, or make one for this",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is of an authority that is not trusted here; name that (tls_ca)"),
    (
        "WRONG_VERSION_NUMBER",
        "it speaks plain text; give it a certificate, or allow that where nobody can listen (plaintext)",
    ),
)
"""Sign and meaning, most specific first. A server that refuses a client's certificate hangs up without a word."""


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for path in (cert, key):
        _read(path)
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        reason = "the key is another certificate's" if error.reason == "KEY_VALUES_MISMATCH" else _reason(error)
        raise FailedPreconditionError(f"{cert} and {key} are no certificate with its key: {reason}") from error


def _check_authority(ca: Path) -> None:
    _read(ca)
    context = _client_context()
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise FailedPreconditionError(f"{ca} holds no certificate of an authority: {_reason(error)}") from error
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    if ends and max(ends) < time.time():
        raise FailedPreconditionError(f"{ca} has expired: make a new authority and certificates")


def _advance(side: ssl.SSLObject, complaint: str) -> None:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        pass
    except ssl.SSLCertVerificationError as error:
        raise FailedPreconditionError(f"{complaint}: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise FailedPreconditionError(f"{complaint}: {_reason(error)}") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error
