"""Settings of the reward service: environment variables `MADPO_REWARD_...`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from madpo.config import CacheSettings, ComputeSettings, EngineSettings, StoreSettings
from madpo.jobs.base import ModelId
from madpo.rpc.channel import MESSAGE_LIMIT_BYTES


def _pads_or_not(batch_tokens: int | None) -> int | None:
    if batch_tokens is not None and 0 < batch_tokens < 32:
        raise ValueError("must be 0 (no padding) or at least 32, the narrowest row")
    return batch_tokens


class RewardSettings(StoreSettings, CacheSettings, ComputeSettings, EngineSettings):
    """Everything that decides a score's bits is part of the revision the service reports."""

    model_config = SettingsConfigDict(env_prefix="MADPO_REWARD_")

    token: SecretStr | None = None
    """Bearer token clients must send; None lets everybody in who can reach the port."""
    cache: Path
    """Local directory for models fetched from the object store."""
    preload: tuple[ModelId, ...] = ()
    """Models to load before the service answers SERVING, as a JSON list; others load when first asked for."""
    max_resident_models: Annotated[int, Field(ge=1)] = 2
    """Models kept in memory; the one unused for longest makes room for a new one. With vLLM it is 1."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of weights and activations. `auto`: bf16 on a GPU that has it, fp32 elsewhere."""
    threads: Annotated[int | None, Field(ge=1)] = None
    """Torch threads of a forward pass; None leaves torch's own choice."""
    max_tokens: Annotated[int, Field(ge=32)] = 4096
    """Longest text scored whole (one token less in padded batches); a model with fewer positions lowers it. Of longer
    texts the start of the prompt goes first, then the end of the response."""
    batch_tokens: Annotated[int | None, Field(ge=0), AfterValidator(_pads_or_not)] = None
    """Tokens of one padded forward pass, padding included. 0: nothing is padded, each text is computed alone and a
    prompt once for all its responses. None: on CUDA rows of prompts with all their responses, whose scores agree to a
    tolerance, and 8192 where that cannot be; on CPU 512 for models under a million weights, else 0."""
    max_queue_tokens: Annotated[int, Field(ge=64)] = 524_288
    """Tokens of requests let in and not yet answered; more are refused at once with a retry hint."""
    max_queue_bytes: Annotated[int, Field(ge=MESSAGE_LIMIT_BYTES)] = 256 << 20
    """Bytes of these requests; a text that is cut to `max_tokens` counts in full."""
    max_queue_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Seconds of work, at the rate of late, that a request may find waiting; one that finds more is refused, but two
    requests are always let in. Whoever is refused is told when to come again."""
    max_pairs_per_request: Annotated[int, Field(ge=1)] = 256
    """Most pairs, or single responses, of one request."""
    max_stall_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 120.0
    """Seconds in which a sample must be scored, the batch in work included, for health to say SERVING. More than the
    longest text takes; what restarts unhealthy services would end it."""
    max_load_stall_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds for which the load of a model may not move, for health to say SERVING: no byte of it fetched, no further
    step begun. More than it takes to verify the local copy of the largest model, or to bring it into memory."""
    cache_entries: Annotated[int, Field(ge=0)] = 100_000
    """Scores of single responses kept in memory; 0 keeps none."""

    @model_validator(mode="after")
    def _one_pair_always_fits(self) -> Self:
        if self.max_queue_tokens < 2 * self.max_tokens:
            raise ValueError(f"max_queue_tokens must be at least 2 * max_tokens = {2 * self.max_tokens}")
        if self.preload and len(self.preload) > self.resident_models:
            raise ValueError(f"preload names {len(self.preload)} models, {self.resident_models} may be in memory")
        return self

    @model_validator(mode="after")
    def _vllm_runs_one_model_its_own_way(self) -> Self:
        if self.engine == "vllm":
            if "max_resident_models" in self.model_fields_set and self.max_resident_models > 1:
                raise ValueError("max_resident_models must be 1 with engine vllm, which runs one model in a process")
            if self.batch_tokens is not None:
                raise ValueError(
                    "batch_tokens is of the engine transformers; vllm_options takes max_num_batched_tokens"
                )
        return self

    @property
    def resident_models(self) -> int:
        """Models that may be in memory with this engine."""
        return 1 if self.engine == "vllm" else self.max_resident_models
