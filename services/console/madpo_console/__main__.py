"""`python -m madpo_console`: the door for browsers and HTTP; with `health`, whether it is open."""

import http
import http.client
import logging
import ssl
import sys

from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.rpc.health import reachable
from madpo.rpc.server import run_process
from madpo_console.settings import ConsoleSettings

logger = logging.getLogger(__name__)

_TIMEOUT_S = 3.0


def serve(settings: ConsoleSettings) -> None:
    """Until SIGTERM or SIGINT."""
    import uvicorn

    from madpo_console.app import make_app

    config = uvicorn.Config(
        make_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.grace_s),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ssl_ca_certs=None if settings.tls_client_ca is None else str(settings.tls_client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if settings.tls_client_ca is None else ssl.CERT_REQUIRED,
    )
    listening = config.bind_socket()
    logger.info("serving", extra={"service": "console", "port": listening.getsockname()[1]})
    uvicorn.Server(config).run(sockets=[listening])


def ask(settings: ConsoleSettings) -> None:
    """Whether the console of these settings answers. Raises UnavailableError."""
    if settings.port == 0:
        raise InvalidArgumentError("MADPO_CONSOLE_PORT is 0, any free port; set it to the one the console listens on")
    host = reachable(settings.host)
    connection: http.client.HTTPConnection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_S)
    if settings.tls_cert is not None:
        # Its own process on its own port: this proves that it answers, not who it is.
        context = ssl._create_unverified_context()  # noqa: S323 - see above
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        connection = http.client.HTTPSConnection(host, settings.port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health", headers={"Host": "127.0.0.1"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"{host}:{settings.port} does not answer: {error}") from error
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise UnavailableError(f"{host}:{settings.port} answers {status}")


if __name__ == "__main__":
    sys.exit(run_process("console", ConsoleSettings, serve=serve, ask=ask))
