"""Links that let a browser into a console without its user having to type a token."""

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from madpo.errors import InvalidArgumentError, UnauthenticatedError, UnavailableError
from madpo.rpc.channel import is_loopback_host

_TIMEOUT_S = 10.0


def console_link(url: str, token: str) -> str:
    """A link that is good once, for some minutes.

    Args:
        url: Of the console: `http://127.0.0.1:50080`.
        token: What the browser may then do; it stays with the console.

    Raises:
        InvalidArgumentError: It is no URL of HTTP.
        UnauthenticatedError: The console's gateway does not know the token.
        UnavailableError: No console answers there.
    """
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise InvalidArgumentError(f"{url} is no address of a console: give one such as http://127.0.0.1:50080")
    asked = urllib.request.Request(  # noqa: S310 - http and https alone, looked at above
        f"{url}/api/login-codes", method="POST", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with _opener(url).open(asked, timeout=_TIMEOUT_S) as answer:
            return f"{url}{json.load(answer)['path']}"
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise UnauthenticatedError(f"the gateway behind the console at {url} does not know this token") from error
        raise UnavailableError(f"the console at {url} answers {error.code}: {_said(error)}") from error
    except (urllib.error.URLError, OSError, HTTPException, ValueError, KeyError) as error:
        raise UnavailableError(f"no console answers at {url}: {getattr(error, 'reason', error)}") from error


class _Stay(urllib.request.HTTPRedirectHandler):
    """Takes a token nowhere else."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""


def _opener(url: str) -> urllib.request.OpenerDirector:
    """No proxy stands between this machine and itself."""
    is_here = is_loopback_host(urlsplit(url).hostname or "")
    return urllib.request.build_opener(_Stay, *([urllib.request.ProxyHandler({})] if is_here else []))


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return error.reason
