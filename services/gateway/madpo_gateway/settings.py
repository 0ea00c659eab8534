"""Settings of the gateway, read from `MADPO_GATEWAY_*`."""

from dataclasses import fields
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from madpo.config import QueueSettings, ScorerSettings
from madpo.data.files.limits import DEFAULT_LIMITS, ReadLimits
from madpo.rpc.channel import is_loopback_host
from madpo_gateway.retention_policy import RetentionPolicy


class GatewaySettings(QueueSettings, ScorerSettings):
    """What the gateway needs besides the object store and the queue. Without a reward service nothing is scored."""

    model_config = SettingsConfigDict(env_prefix="MADPO_GATEWAY_")

    token: SecretStr = Field(min_length=16)
    """Bearer token of every call; at least 16 characters, better 256 random bits."""
    allow_plaintext: bool = False
    """Listen beyond loopback without TLS. Only for a network nobody else is on."""
    scratch: Path
    """Local directory of this gateway alone, for uploads that are not stored yet."""
    max_upload_bytes: int = Field(default=16 * 1024**3, ge=1)
    """Largest dataset, as it is uploaded: all files together."""
    max_decompressed_bytes: int = Field(default=DEFAULT_LIMITS.max_decompressed_bytes, ge=1)
    """Most bytes the files of a dataset may decompress to, together."""
    max_compression_ratio: int = Field(default=DEFAULT_LIMITS.max_compression_ratio, ge=1)
    """Most decompressed bytes per compressed byte of a file, from 8 MiB on."""
    max_rows: int = Field(default=DEFAULT_LIMITS.max_rows, ge=1)
    """Most rows of a dataset."""
    max_row_bytes: int = Field(default=DEFAULT_LIMITS.max_row_bytes, ge=1)
    """Largest row."""
    max_field_bytes: int = Field(default=DEFAULT_LIMITS.max_field_bytes, ge=1)
    """Largest value of one column in a row."""
    max_columns: int = Field(default=DEFAULT_LIMITS.max_columns, ge=1)
    """Most columns of a file."""
    max_depth: int = Field(default=DEFAULT_LIMITS.max_depth, ge=1, le=200)
    """Deepest nesting of a row."""
    max_page_bytes: int = Field(default=DEFAULT_LIMITS.max_page_bytes, ge=1)
    """Largest Parquet page or Arrow record batch, uncompressed."""
    upload_ttl_s: float = Field(default=6 * 3600.0, gt=0)
    """How long an unfinished upload of a dataset is kept after its last byte, in seconds."""
    max_model_bytes: int = Field(default=100 * 1024**3, ge=1)
    """Largest model directory."""
    max_watchers: int = Field(default=5_000, ge=1)
    """Most watches of jobs at once; more are asked to come back later. Each takes about 50 KB."""
    retention: RetentionPolicy = RetentionPolicy()
    """What is removed in time, as JSON: `{"jobs": {"days": 90, "keep_last": 200}}`. By default nothing."""
    retention_every_s: float | None = Field(default=None, ge=60)
    """How often the rules are applied, in seconds; None is only when asked, by `madpo retention apply`."""
    hub_endpoint: str | None = None
    """URL models are imported from; None is the hub library's own default."""
    max_imports: int = Field(default=4, ge=1)
    """Most imports from the hub at once; a few more wait, the rest are refused with a time to wait."""
    import_timeout_s: float = Field(default=1_500.0, gt=0)
    """Longest time for the hub to give what is imported, in seconds."""

    scoring_requests: int = Field(default=2, ge=1)
    """Most requests on their way to the reward service at once, of all scoring streams together. More keep more
    replicas busy; trainings, which ask the same replicas, then wait longer."""
    max_scorings: int = Field(default=16, ge=1)
    """Most scoring streams at once; more are asked to come back later. Each holds up to some 20 MB."""
    max_scorings_per_token: int = Field(default=8, ge=1)
    """Most of them of one token."""

    @property
    def read_limits(self) -> ReadLimits:
        """What the files of a dataset may ask of their reader."""
        return ReadLimits(**{limit.name: getattr(self, limit.name) for limit in fields(ReadLimits)})

    @property
    def uploads(self) -> Path:
        """Where uploads are spooled that end with their call; emptied at start."""
        return self.scratch / "uploads"

    @property
    def unfinished_uploads(self) -> Path:
        """Where uploads are spooled that may go on after their connection, or this gateway, has ended."""
        return self.scratch / "unfinished"

    @model_validator(mode="after")
    def _plaintext_stays_on_loopback(self) -> Self:
        if self.tls_cert is None and not self.allow_plaintext and not is_loopback_host(self.host):
            raise ValueError(
                f"host {self.host} is not loopback and calls are not encrypted: anybody on the way reads the token "
                "(set MADPO_GATEWAY_TLS_CERT and MADPO_GATEWAY_TLS_KEY, or MADPO_GATEWAY_ALLOW_PLAINTEXT=true where "
                "the network is private)"
            )
        return self
