"""`python -m madpo_gateway`: the door for clients; with `health`, whether it is open."""

import sys

from prometheus_client import CollectorRegistry

from madpo.rpc.server import Service, run_service
from madpo_gateway.settings import GatewaySettings


def build(settings: GatewaySettings, registry: CollectorRegistry) -> Service:
    """The service; its imports are not for a health check."""
    from madpo_gateway.service import GatewayService

    return GatewayService(settings, registry)


if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewaySettings, build))
