"""Settings of the gateway, read from `MADPO_GATEWAY_*`."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from madpo.config import QueueSettings
from madpo.rpc.channel import is_loopback_host


class GatewaySettings(QueueSettings):
    """What the gateway needs besides the object store and the queue."""

    model_config = SettingsConfigDict(env_prefix="MADPO_GATEWAY_")

    token: SecretStr = Field(min_length=16)
    """Bearer token of every call; at least 16 characters, better 256 random bits."""
    allow_plaintext: bool = False
    """Listen beyond loopback without TLS. Only for a network nobody else is on."""
    scratch: Path
    """Local directory of this gateway alone, for uploads that are not stored yet."""
    max_upload_bytes: int = Field(default=2 * 1024**3, ge=1)
    """Largest dataset file."""
    max_model_bytes: int = Field(default=100 * 1024**3, ge=1)
    """Largest model directory."""
    hub_endpoint: str | None = None
    """URL models are imported from; None is the hub library's own default."""

    @property
    def uploads(self) -> Path:
        """Where uploads are spooled; emptied at start."""
        return self.scratch / "uploads"

    @model_validator(mode="after")
    def _plaintext_stays_on_loopback(self) -> Self:
        if self.tls_cert is None and not self.allow_plaintext and not is_loopback_host(self.host):
            raise ValueError(
                f"host {self.host} is not loopback and calls are not encrypted: anybody on the way reads the token "
                "(set MADPO_GATEWAY_TLS_CERT and MADPO_GATEWAY_TLS_KEY, or MADPO_GATEWAY_ALLOW_PLAINTEXT=true where "
                "the network is private)"
            )
        return self
