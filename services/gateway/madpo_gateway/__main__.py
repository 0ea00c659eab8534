"""`python -m madpo_gateway`: the door for clients."""

import sys

from madpo.rpc.server import run_service
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings

if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewaySettings, GatewayService, token_field="token"))  # noqa: S106
