"""Settings of the SDK and the CLI, read from `MADPO_SERVER`, `MADPO_TOKEN_FILE`, `MADPO_HOME` and so on.

Gateways that are used often have a name each, a profile, in `HOME/config.toml`:

    [profiles.lab]
    server = "gpu-host:50050"
    token_file = "~/.madpo/lab.token"
    tls_ca = "~/.madpo/lab-ca.crt"
"""

import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from madpo.errors import InvalidArgumentError, NotFoundError


class ClientSettings(BaseSettings):
    """Where the gateway is, and what opens it."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="MADPO_", use_attribute_docstrings=True)

    server: str | None = None
    """`host:port` of the gateway; None looks for the embedded stack of `home`."""
    token_file: Path | None = None
    """File with the bearer token."""
    tls_ca: Path | None = None
    """Authority of the gateway's certificate; None trusts the public ones."""
    plaintext: bool = False
    """Talk to a gateway on another host without TLS: anybody on the way reads the token."""
    profile: str | None = None
    """Whose fields stand in for those that are not given."""
    home: Path = Path("~/.madpo")
    """State of the embedded stack."""

    def with_profile(self) -> Self:
        """These settings, with what is not given taken from the profile.

        Raises:
            NotFoundError: There is no such profile.
            InvalidArgumentError: The file is no TOML, or the profile has wrong fields.
        """
        if self.profile is None:
            return self
        path = self.expanded_home / "config.toml"
        try:
            profiles = tomllib.loads(path.read_text()).get("profiles", {})
            fields = profiles[self.profile]
        except (FileNotFoundError, KeyError) as error:
            raise NotFoundError(f"{path} has no [profiles.{self.profile}]") from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgumentError(f"{path} is no TOML: {error}") from error
        wrong = sorted(set(fields) - {"server", "token_file", "tls_ca", "plaintext"})
        if wrong:
            raise InvalidArgumentError(
                f"[profiles.{self.profile}] of {path} has {', '.join(wrong)}; "
                "a profile has server, token_file, tls_ca and plaintext"
            )
        try:
            return type(self)(**{**fields, **self.model_dump(exclude_unset=True)})
        except ValidationError as error:
            raise InvalidArgumentError(f"[profiles.{self.profile}] of {path}: {error.errors()[0]['msg']}") from error

    @property
    def expanded_home(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().absolute()


def client_settings(**given: Any) -> ClientSettings:
    """What was given, over the environment, over the profile. Raises as `ClientSettings.with_profile`."""
    return ClientSettings(**{name: value for name, value in given.items() if value is not None}).with_profile()
