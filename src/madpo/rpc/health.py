"""Asking a service whether it serves, over its own port: `python -m madpo_<service> health`."""

import ipaddress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from madpo.config import ServiceSettings
from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.rpc.tls import ClientTls, certificate_names

_TIMEOUT_S = 3.0


def check_serving(settings: ServiceSettings) -> None:
    """Return when the service of these settings answers SERVING.

    With TLS the service's own certificate is what it is checked against, and what is shown to it: this proves that the
    process answers, not who it is.

    Raises:
        UnavailableError: It does not answer, or not yet, or drains.
        InvalidArgumentError: The settings leave the port open.
        FailedPreconditionError: The certificate cannot be used.
    """
    if settings.port == 0:
        variable = f"{settings.model_config.get('env_prefix', '')}PORT"
        raise InvalidArgumentError(f"{variable} is 0, any free port; set it to the one the service listens on")
    target = f"{reachable(settings.host)}:{settings.port}"
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
    options: tuple[tuple[str, int | str], ...] = (("grpc.enable_http_proxy", 0),)
    if settings.tls_cert is None or settings.tls_key is None:
        return grpc.insecure_channel(target, options=options)
    # The certificate need not be for the loopback address: it is asked for by a name it has.
    names = certificate_names(settings.tls_cert, settings.tls_key, client_ca=settings.tls_client_ca)
    if names:
        options += (("grpc.ssl_target_name_override", names[0].replace("*", "health")),)
    credentials = ClientTls(settings.tls_cert, settings.tls_cert, settings.tls_key).credentials()
    return grpc.secure_channel(target, credentials, options=options)


def reachable(host: str) -> str:
    """An address to connect to, of the one listened on."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "[::1]"
