"""Before anything starts: nothing travels in the clear, no secret is empty, and volumes belong to the services' user.

MADPO_GATEWAY_BIND             address the gateway is published on
MADPO_GATEWAY_TLS              true: it speaks TLS
MADPO_GATEWAY_ALLOW_PLAINTEXT  true: nobody else is on that network
MADPO_UID, MADPO_GID           who the services run as
"""

import ipaddress
import os
import sys
from collections.abc import Mapping
from pathlib import Path

SHORTEST_TOKEN = 16
"""Of the client token, in bytes: as the gateway asks for."""


def short_secret(directory: Path) -> str | None:
    """Which secret is empty or cut short; sizes are enough to know, and what is in the files cannot be read here."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        least = SHORTEST_TOKEN if path.name == "client_token" else 1
        if not path.is_file() or path.stat().st_size < least:
            return f"the secret {path.name} is empty or too short: remove its file and run madpo init to make another"
    return None


def refusal(environment: Mapping[str, str]) -> str | None:
    """Why the gateway must not be published like this."""
    bind = environment["MADPO_GATEWAY_BIND"]
    try:
        closed = ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return f"MADPO_GATEWAY_BIND is {bind!r}; expected an IP address of this host, such as 127.0.0.1 or 0.0.0.0"
    if closed or "true" in (environment["MADPO_GATEWAY_TLS"], environment["MADPO_GATEWAY_ALLOW_PLAINTEXT"]):
        return None
    return (
        f"MADPO_GATEWAY_BIND={bind} would send tokens and data over the network in plain text: add"
        " -f docker-compose.tls.yml, or set MADPO_GATEWAY_ALLOW_PLAINTEXT=true if nobody else is on that network"
    )


if __name__ == "__main__":
    if reason := refusal(os.environ) or short_secret(Path("/run/secrets")):
        sys.exit(reason)
    for volume in Path("/volumes").iterdir():
        os.chown(volume, int(os.environ["MADPO_UID"]), int(os.environ["MADPO_GID"]))
