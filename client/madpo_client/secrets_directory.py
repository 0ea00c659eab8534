"""The private files `docker compose` needs before it starts: random secrets, and the settings of this host.

DIR/.env         no secret in it: where they are, who the containers run as, where the gateway listens
DIR/secrets/     one file a secret, each mounted only into the containers that need it
"""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from madpo.errors import FailedPreconditionError, InvalidArgumentError

SECRETS = (
    "client_token",
    "reward_token",
    "redis_password",
    "grafana_password",
    "minio_root_user",
    "minio_root_password",
    *(
        f"s3_{service}_{part}_key"
        for service in ("gateway", "reward", "trainer", "evaluator")
        for part in ("access", "secret")
    ),
)

_CONTAINER_USER = 10001
"""Who the containers run as when root prepares them; else they run as whoever did, and so can read the files."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` made, what it found there, and where the gateway will listen (`host:port`)."""

    made: tuple[Path, ...]
    kept: tuple[Path, ...]
    gateway: str


def prepare(directory: Path) -> Prepared:
    """Make what is missing, readable by its owner alone; never replaces a file.

    Run by root, the secrets are given to the user of `.env`, as whom the containers run.

    Raises:
        FailedPreconditionError: The directory cannot be written, or holds an `.env` of something else.
        InvalidArgumentError: The directory's name cannot be written into `.env`.
    """
    directory = directory.absolute()
    folder, settings = directory / "secrets", directory / ".env"
    contents = {settings: _environment(folder)} | {folder / name: _random_value(name) for name in SECRETS}
    made: list[Path] = []
    kept: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        for path, text in contents.items():
            (made if _write_new(path, text) else kept).append(path)
        values = _read_environment(settings)
        if os.getuid() == 0:
            for path in (folder, *(folder / name for name in SECRETS)):
                os.chown(path, int(values["MADPO_UID"]), int(values["MADPO_GID"]), follow_symlinks=False)
    except OSError as error:
        raise FailedPreconditionError(f"{error.filename} cannot be written: {error.strerror}") from error
    gateway = f"{values['MADPO_GATEWAY_BIND']}:{values['MADPO_GATEWAY_PORT']}"
    return Prepared(tuple(made), tuple(kept), gateway)


def _random_value(name: str) -> str:
    """Names are shorter than keys: some object stores take no more than 20 characters."""
    return secrets.token_hex(10 if name.endswith(("access_key", "_user")) else 32)


def _write_new(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    try:
        with open(descriptor, "w") as file:
            file.write(text)
    except OSError:
        path.unlink()
        raise
    return True


def _environment(folder: Path) -> str:
    user, group = (os.getuid(), os.getgid()) if os.getuid() != 0 else (_CONTAINER_USER, _CONTAINER_USER)
    return f"""\
# Settings of docker compose on this host, made by `madpo init`. The secrets themselves are files in:
MADPO_SECRETS_DIR={_quoted(str(folder))}
# Who the containers run as; must be able to read those files.
MADPO_UID={user}
MADPO_GID={group}
# Where the gateway listens. Any address but 127.0.0.1 wants TLS, see docs/deployment.md.
MADPO_GATEWAY_BIND=127.0.0.1
MADPO_GATEWAY_PORT=50050
"""


def _quoted(value: str) -> str:
    """As compose and the shell both read it back."""
    if re.fullmatch(r"[\w@%+:,./-]+", value, re.ASCII):
        return value
    if "'" in value or "\n" in value:
        raise InvalidArgumentError(f"{value!r} has a quote or a line break in its name; choose another directory")
    return f"'{value}'"


def _read_environment(path: Path) -> Mapping[str, str]:
    values = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    needed = re.findall(r"^(\w+)=", _environment(path.parent / "secrets"), re.MULTILINE)
    if missing := [name for name in needed if not values.get(name)]:
        raise FailedPreconditionError(
            f"{path} was there already and does not set {', '.join(missing)}; move it away, run this again and put "
            "your own lines back"
        )
    return values
