"""Settings of the SDK and the CLI, read from `MADPO_SERVER`, `MADPO_TOKEN_FILE`, `MADPO_HOME` and so on.

Gateways that are used often have a name each, a profile, in `HOME/config.toml`:

    [profiles.lab]
    server = "gpu-host:50050"
    token_file = "~/.madpo/lab.token"
    tls_ca = "~/.madpo/lab-ca.crt"
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from madpo.errors import InvalidArgumentError, NotFoundError


class ConnectionOptions(TypedDict, total=False):
    """Fields of `ClientSettings` that name a gateway; None counts as not given."""

    server: str | None
    token_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    plaintext: bool | None
    profile: str | None


class ClientSettings(BaseSettings):
    """Where the gateway is, and what opens it."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="MADPO_", env_ignore_empty=True, extra="forbid", use_attribute_docstrings=True
    )

    server: str | None = None
    """`host:port` of the gateway; None looks for the embedded stack of `home`."""
    token_file: Path | None = None
    """File with the bearer token."""
    tls_ca: Path | None = None
    """Authority of the gateway's certificate; None trusts those of this system."""
    tls_cert: Path | None = None
    """Certificate to show a gateway that lets in only holders of one; with `tls_key`."""
    tls_key: Path | None = None
    plaintext: bool = False
    """Talk to a gateway on another host without TLS: anybody on the way reads the token."""
    profile: str | None = None
    """Whose fields stand in for those that are not given."""
    home: Path = Path("~/.madpo")
    """State of the embedded stack."""
    port: int | None = None
    """Port of the embedded stack's gateway; None keeps the one it had before, 0 takes any that is free."""

    @property
    def expanded_home(self) -> Path:
        """`home` as an absolute path."""
        return self.home.expanduser().absolute()


def client_settings(**given: Unpack[ConnectionOptions]) -> ClientSettings:
    """What was given, over the environment. A profile comes right after where it was named.

    So `--profile lab` is talked to whatever the environment holds, and a `MADPO_SERVER` wins over a `MADPO_PROFILE`.

    Raises:
        NotFoundError: There is no such profile.
        InvalidArgumentError: A value is wrong, or the file of profiles is.
    """
    options = {name: value for name, value in given.items() if value is not None}
    settings = _checked(options)
    if settings.profile is None:
        return settings
    profile = _read_profile(settings.expanded_home / "config.toml", settings.profile)
    if "profile" not in options:
        options = settings.model_dump(exclude_unset=True)
    return _checked({**profile, **options})


def _checked(fields: Mapping[str, Any]) -> ClientSettings:
    try:
        return ClientSettings(**fields)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False, include_input=False)
        )
        raise InvalidArgumentError(f"settings of the client: {wrong}") from error


def _read_profile(path: Path, name: str) -> Mapping[str, Any]:
    try:
        profiles = tomllib.loads(path.read_text()).get("profiles", {})
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {path}, so no profile {name!r} in it") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error}") from error
    if not isinstance(profiles, dict) or not isinstance(profiles.get(name), dict):
        known = ", ".join(profiles) if isinstance(profiles, dict) and profiles else "none"
        raise NotFoundError(f"{path} has no [profiles.{name}]; it has: {known}")
    profile: Mapping[str, Any] = profiles[name]
    allowed = ConnectionOptions.__annotations__.keys() - {"profile"}
    if wrong := sorted(profile.keys() - allowed):
        raise InvalidArgumentError(
            f"[profiles.{name}] of {path} has {', '.join(wrong)}; a profile has {', '.join(sorted(allowed))}"
        )
    if "server" not in profile:
        raise InvalidArgumentError(f"[profiles.{name}] of {path} names no server")
    return profile
