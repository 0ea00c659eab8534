"""A gateway at whose door hostile things are handed in."""

from dataclasses import dataclass

from madpo.ports import ObjectStore
from madpo.rpc.gateway.client import GatewayClient
from madpo_gateway.settings import GatewaySettings
from tests.integration.gateway.service import stored_keys

TOKEN = "a-token-of-this-test"


@dataclass
class Door:
    """A gateway, a client of it, and what is behind it."""

    client: GatewayClient
    settings: GatewaySettings
    store: ObjectStore

    def left_behind(self) -> list[str]:
        """Files of uploads and stored objects."""
        spooled = [str(path) for path in self.settings.scratch.rglob("*") if path.is_file()]
        return spooled + stored_keys(self.store)
