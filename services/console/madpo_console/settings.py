"""Settings of the console, read from `MADPO_CONSOLE_*`."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from madpo.config import ServiceSettings
from madpo.rpc.channel import is_loopback_host


class ConsoleSettings(ServiceSettings):
    """What the console needs: where the gateway is. It has no token of its own; who asks brings one."""

    model_config = SettingsConfigDict(env_prefix="MADPO_CONSOLE_")

    gateway: str
    """`host:port` of the gateway."""
    gateway_tls_ca: Path | None = None
    """Authority of the gateway's certificate. Without it a gateway on this machine is talked to in plain text, any
    other by TLS with the authorities this system trusts."""
    gateway_plaintext: bool = False
    """Talk to a gateway on another machine without TLS. Only for a network nobody else is on."""
    allow_plaintext: bool = False
    """Listen beyond loopback without TLS: for a network nobody else is on, or behind a proxy that ends TLS."""
    names: tuple[str, ...] = ()
    """Host names and addresses that browsers and programs reach it under, besides those of loopback; others are
    refused."""
    scratch: Path
    """Local directory of this console alone, for uploads on their way; emptied at start."""
    max_upload_bytes: int = Field(default=1 << 30, ge=1)
    """Largest file that is taken; the SDK and the CLI upload larger ones."""
    session_s: float = Field(default=12 * 3600.0, gt=0)
    """How long a browser stays logged in, in seconds."""

    @model_validator(mode="after")
    def _plaintext_stays_on_loopback(self) -> Self:
        if self.tls_cert is None and not self.allow_plaintext and not is_loopback_host(self.host):
            raise ValueError(
                f"host {self.host} is not loopback and connections are not encrypted: anybody on the way reads tokens "
                "(set MADPO_CONSOLE_TLS_CERT and MADPO_CONSOLE_TLS_KEY, or MADPO_CONSOLE_ALLOW_PLAINTEXT=true where "
                "the network is private)"
            )
        return self
