"""Asking a service whether it serves, over its own port: `python -m madpo_<service> health`."""

import ipaddress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from madpo.config import ServiceSettings
from madpo.errors import UnavailableError
from madpo.rpc.tls import ClientTls

_TIMEOUT_S = 3.0


def check_serving(settings: ServiceSettings) -> None:
    """Return when the service of these settings answers SERVING.

    With TLS the service's own certificate is what it is checked against, and what is shown to it: this proves that the
    process answers, not who it is.

    Raises:
        UnavailableError: It does not answer, or not yet, or drains.
    """
    target = f"{_reachable(settings.host)}:{settings.port}"
    with _open(target, settings) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S).status
        except grpc.RpcError as error:
            raise UnavailableError(f"{target} does not answer: {error.details()}") from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise UnavailableError(f"{target} answers {name}")


def _open(target: str, settings: ServiceSettings) -> grpc.Channel:
    if settings.tls_cert is None:
        return grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),))
    credentials = ClientTls(settings.tls_client_ca or settings.tls_cert, settings.tls_cert, settings.tls_key)
    options = (("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "localhost"))
    return grpc.secure_channel(target, credentials.credentials(), options=options)


def _reachable(host: str) -> str:
    """An address to connect to, of the one listened on."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "[::1]"
