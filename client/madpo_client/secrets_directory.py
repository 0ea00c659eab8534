"""The private files `docker compose` needs before it starts: random secrets, and the settings of this host.

DIR/.env         no secret in it: where they are, who the containers run as, where the gateway listens
DIR/secrets/     one file a secret, each mounted only into the containers that need it
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from madpo.errors import FailedPreconditionError

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
    """What `prepare` made, and what it found there."""

    made: tuple[Path, ...]
    kept: tuple[Path, ...]


def prepare(directory: Path) -> Prepared:
    """Make what is missing, readable by its owner alone; never replaces a file.

    Raises:
        FailedPreconditionError: The directory cannot be written.
    """
    user, group = (os.getuid(), os.getgid()) if os.getuid() != 0 else (_CONTAINER_USER, _CONTAINER_USER)
    folder = directory / "secrets"
    contents = {
        folder / name: secrets.token_hex(10 if name.endswith(("access_key", "_user")) else 32) for name in SECRETS
    }
    contents[directory / ".env"] = _environment(folder.absolute(), user, group)
    made: list[Path] = []
    kept: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for path, text in contents.items():
            (made if _write_new(path, text) else kept).append(path)
        if os.getuid() == 0:
            for path in (folder, *(path for path in contents if path.parent == folder)):
                os.chown(path, user, group)
    except OSError as error:
        raise FailedPreconditionError(f"{error.filename} cannot be written: {error.strerror}") from error
    return Prepared(tuple(made), tuple(kept))


def _write_new(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with open(descriptor, "w") as file:
        file.write(text)
    return True


def _environment(folder: Path, user: int, group: int) -> str:
    return f"""\
# Settings of docker compose on this host, made by `madpo init`. The secrets themselves are files in:
MADPO_SECRETS_DIR={folder}
# Who the containers run as; must be able to read those files.
MADPO_UID={user}
MADPO_GID={group}
# Where the gateway listens. Any address but 127.0.0.1 wants TLS, see docs/deployment.md.
MADPO_GATEWAY_BIND=127.0.0.1
MADPO_GATEWAY_PORT=50050
"""
