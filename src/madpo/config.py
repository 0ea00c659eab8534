"""Settings of services: environment over secret files over a TOML file over defaults.

Only `settings.py` modules and this one read the environment.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from madpo.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError


def revealed(secret: SecretStr | None) -> str | None:
    """The text of a secret, if there is one."""
    return secret.get_secret_value() if secret is not None else None


class ServiceSettings(BaseSettings):
    """What every service has. A subclass sets `env_prefix` (`MADPO_REWARD_`); nested fields use `__`.

    A file of `MADPO_SECRETS_DIR` (by default `/run/secrets`, where there is one) may hold a single value; it is named
    like the variable, in lower case: `madpo_reward_token`. A TOML file named by `MADPO_CONFIG_FILE` may hold any.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter="__", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=0, ge=0, le=65535)
    """gRPC port; 0 picks a free one and logs it."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Prometheus port; None serves no metrics."""
    log_format: str = Field(default="text", pattern="^(text|json)$")
    log_level: str = "INFO"
    grace_s: float = Field(default=20.0, ge=0)
    """How long calls in flight may take after SIGTERM, in seconds."""
    reflection: bool = False
    """Serve gRPC reflection."""
    tls_cert: Path | None = None
    """Certificate chain of this service, PEM; with `tls_key` it serves TLS instead of plain text."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Mutual TLS: only clients with a certificate of this authority are let in."""

    @model_validator(mode="after")
    def _certificate_comes_with_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key come together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key: without TLS there are no client certificates")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then secret files, then the TOML file."""
        path = os.environ.get("MADPO_CONFIG_FILE")
        toml = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        return (init_settings, env_settings, *_secret_files(settings_cls), *toml)

    def variable(self, field: str) -> str:
        """The environment variable that sets a field."""
        return f"{self.model_config.get('env_prefix', '')}{field}".upper()

    def resolved(self) -> dict[str, Any]:
        """The settings as JSON with secrets masked; logged once at start."""
        return self.model_dump(mode="json")


class StoreSettings(ServiceSettings):
    """Settings of services that use the object store."""

    store_url: str
    """`file:///dir` or `s3://bucket/optional/prefix`."""
    s3_endpoint: str | None = None
    """`https://host:port` of the S3 server; plain `http://` only where the network is private."""
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"


class BackupSettings(StoreSettings):
    """A place of backups, where its server or credentials are not those of the store."""

    model_config = SettingsConfigDict(env_prefix="MADPO_BACKUP_")


class QueueSettings(StoreSettings):
    """Settings of services that also use the job queue."""

    redis_url: SecretStr
    """`redis://[:password@]host:port/0`, `rediss://...` for TLS, or `unix:///path`; behind sentinels
    `redis+sentinel://[:password@]host:port,host:port,.../PRIMARY/0` with the name they have for the primary, or
    `rediss+sentinel://...`."""
    redis_password: SecretStr | None = None
    """Where the URL holds none."""
    redis_sentinel_password: SecretStr | None = None
    """Of the sentinels, where they ask for one."""
    redis_namespace: str = "madpo"
    lease_s: float = Field(default=30.0, gt=0)
    """How long a worker may be silent before its job is given to another, in seconds."""


class CacheSettings(ServiceSettings):
    """Settings of services that keep copies of stored objects on their host."""

    max_cache_bytes: int = Field(default=64 << 30, ge=0)
    """Local copies of models, datasets, tokens and reference log-probs beyond this are removed between jobs (of the
    reward service when it loads a model), those unused for longest first; never what is in use."""
    max_cache_age_s: float = Field(default=14 * 24 * 3600.0, gt=0)
    """Local copies that nothing used for so long are removed as well, in seconds."""


class ComputeSettings(ServiceSettings):
    """Settings of services that compute with models."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What is computed on. `auto` takes GPUs where there are any; `cuda` does not start where none is visible, instead
    of computing on the CPU; `cpu` leaves GPUs alone."""
    gpu_memory_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a GPU's memory that a process of this service may take, of each GPU that it computes on: for services
    that share one. What is asked for beyond it is a lack of memory, as if the GPU were so small; CUDA's own context
    comes on top."""


class EngineSettings(ServiceSettings):
    """Settings of services whose models transformers or vLLM runs."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the models that are only asked. `vllm` is an extra of its own (`pip install 'madpo[vllm]'`)."""
    vllm_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's `EngineArgs`, as a JSON object: `{"tensor_parallel_size": 2}`."""

    def require_engine(self) -> None:
        """See that the engine is installed.

        Raises:
            FailedPreconditionError: It is not; says what to do.
        """
        if self.engine == "vllm" and find_spec("vllm") is None:
            variable = self.variable("engine")
            raise FailedPreconditionError(
                f"{variable}=vllm, but vLLM is not installed where this service runs: pip install 'madpo[vllm]' there, "
                f"or set {variable}=transformers"
            )


class ScorerSettings(ServiceSettings):
    """Settings of services that ask the reward service."""

    reward_target: str | None = None
    """gRPC target of the reward service, e.g. `dns:///reward:50051`."""
    reward_token: SecretStr | None = None
    """Bearer token the reward service asks for."""
    tls_ca: Path | None = None
    """Authority the reward service's certificate is checked against; with it that channel is TLS, and this service's
    own certificate is shown."""


class WorkerSettings(QueueSettings, CacheSettings, ComputeSettings, ScorerSettings):
    """Settings of services that run jobs in a child process."""

    workspace: Path
    """Local scratch directory: logs and files of running jobs, and local copies."""
    renew_s: float = Field(default=10.0, gt=0)
    """Lease renewal period, in seconds; well under `lease_s`."""
    poll_s: float = Field(default=0.5, gt=0)
    """How often cancellation and the run's progress are looked at, in seconds."""
    stop_grace_s: float = Field(default=60.0, gt=0)
    """How long a run may take to write its checkpoint after being asked to stop, in seconds."""
    silence_s: float = Field(default=7200.0, gt=0)
    """How long a run may say nothing (progress, checkpoint, log) before it is killed as hung, in seconds."""
    spare_s: float = Field(default=900.0, ge=0)
    """How long an idle worker keeps a process ready that has imported what a run takes, in seconds; 0 keeps none. The
    next job then starts seconds earlier. It holds about 310 MiB, most of which it shares with a run beside it, and is
    the first that the kernel ends where memory is short; after this long without a job it goes."""
    spare_after_s: float = Field(default=5.0, ge=0)
    """How long a worker is idle before it starts such a process, in seconds: what starts beside it comes first. Where
    there is no GPU each run leaves a copy of itself for the next one, which then need not be started."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of a run; None leaves torch's own choice."""

    @property
    def copies(self) -> Path:
        """Directory of the local copies."""
        return self.workspace / "cache"


def _secret_files(settings_cls: type[BaseSettings]) -> tuple[SecretsSettingsSource, ...]:
    named = os.environ.get("MADPO_SECRETS_DIR")
    directory = Path(named or "/run/secrets")
    if named and not directory.is_dir():
        raise SettingsError(f"MADPO_SECRETS_DIR is {directory}, which is not a directory")
    return (SecretsSettingsSource(settings_cls, secrets_dir=directory),) if directory.is_dir() else ()


def log_format_of(settings: type[ServiceSettings]) -> str:
    """The format of logs that the environment asks for, also where other settings are wrong."""
    return os.environ.get(f"{settings.model_config.get('env_prefix', '')}LOG_FORMAT", "text")


S = TypeVar("S", bound=ServiceSettings)


def load_settings(settings: type[S], **overrides: Any) -> S:
    """Read and check a service's settings.

    Raises:
        InvalidArgumentError: Names each wrong or missing variable, or the file that cannot be read.
    """
    service = settings.__module__.split(".")[0]
    try:
        return settings(**overrides)
    except ValidationError as error:
        prefix = str(settings.model_config.get("env_prefix", ""))
        violations = [
            FieldViolation(prefix + "__".join(map(str, detail["loc"])).upper(), detail["msg"])
            for detail in error.errors(include_url=False, include_input=False)
        ]
        raise InvalidArgumentError.of(violations, what=f"settings of {service}") from error
    except (SettingsError, OSError, TOMLDecodeError) as error:
        unread = error.__cause__ if isinstance(error, SettingsError) else error
        reason = f"{unread.filename} cannot be read: {unread.strerror}" if isinstance(unread, OSError) else error
        raise InvalidArgumentError(f"settings of {service}: {reason}") from error
