"""Settings of the SDK and the CLI, read from `MADPO_SERVER`, `MADPO_TOKEN_FILE` and `MADPO_HOME`."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """Where the gateway is, and what opens it."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="MADPO_", use_attribute_docstrings=True)

    server: str | None = None
    """`host:port` of the gateway; None looks for the embedded stack of `home`."""
    token_file: Path | None = None
    """File with the bearer token."""
    home: Path = Path("~/.madpo")
    """State of the embedded stack."""

    @property
    def expanded_home(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().absolute()
