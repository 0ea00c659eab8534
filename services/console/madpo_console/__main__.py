"""`python -m madpo_console`: the door for browsers and HTTP; with `health`, whether it is open."""

import logging
import ssl
import sys
import urllib.error
import urllib.request

from madpo.errors import UnavailableError
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
    scheme = "http" if settings.tls_cert is None else "https"
    # Its own process on its own port: this proves that it answers, not who it is.
    context = ssl._create_unverified_context() if settings.tls_cert is not None else None  # noqa: S323 - see above
    url = f"{scheme}://127.0.0.1:{settings.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=context):  # noqa: S310 - our own process
            pass
    except (urllib.error.URLError, OSError) as error:
        raise UnavailableError(f"{url} does not answer: {error}") from error


if __name__ == "__main__":
    sys.exit(run_process("console", ConsoleSettings, serve=serve, ask=ask))
