"""The reward service: models come from the object store, scores from the pipeline."""

import asyncio
import sys
from collections.abc import Callable
from functools import cached_property

import grpc
import torch
from prometheus_client import CollectorRegistry

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.models.device import bound_gpu_memory, require_device
from madpo.ports import ObjectStore
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.v1.reward_service_pb2 import DESCRIPTOR
from madpo.v1.reward_service_pb2_grpc import add_RewardServiceServicer_to_server
from madpo_reward.faults import told
from madpo_reward.metrics import RewardMetrics
from madpo_reward.pipeline import Pipeline
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer
from madpo_reward.servicer import RewardServicer
from madpo_reward.settings import RewardSettings

_SWITCH_S = 0.001


class RewardService:
    """Serves every reward model of the object store; stateless but for what it keeps in memory."""

    max_unseen_calls = 64
    """What one client has on its way at once; to look at twice as many, the most that wait, takes 50 ms of a core."""

    def __init__(self, settings: RewardSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._metrics = RewardMetrics(registry)
        self._pipeline = Pipeline(self._load, settings=settings, metrics=self._metrics)

    def add_to_server(self, server: grpc.aio.Server) -> tuple[str, ...]:
        """Register RewardService."""
        servicer = RewardServicer(
            self._pipeline, max_pairs_per_request=self._settings.max_pairs_per_request, metrics=self._metrics
        )
        add_RewardServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        return (DESCRIPTOR.services_by_name["RewardService"].full_name,)

    async def start(self) -> None:
        """Open the object store and load the models named in `preload`.

        Raises:
            FailedPreconditionError: There is no GPU, and one is asked for.
        """
        require_device(self._settings)
        bound_gpu_memory(self._settings)
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        # The loop that lets in and refuses must not wait long for the threads that compute.
        sys.setswitchinterval(_SWITCH_S)
        self._pipeline.start()
        await asyncio.to_thread(lambda: self._store)
        for model_id in self._settings.preload:
            await self._pipeline.describe(model_id)

    async def ailment(self) -> str | None:
        """Why no text can be scored; None where one was."""
        return await self._pipeline.ailment()

    async def stop(self) -> None:
        """End the threads."""
        await self._pipeline.stop()

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self._settings)

    def _load(self, model_id: str) -> Scorer:
        models = ModelStore(self._store, self._settings.cache, transfer=self._watch)
        try:
            scorer = self._scorer(model_id, models)
            scorer.copies = models.copies
            return scorer
        except Exception as error:
            models.copies.release()
            raise told(error, f"{model_id} cannot be loaded") from error
        finally:
            models.copies.trim(max_bytes=self._settings.max_cache_bytes, max_age_s=self._settings.max_cache_age_s)

    def _watch(self, name: str, size_bytes: int) -> Callable[[int], None]:
        self._pipeline.load_moved()
        return lambda count: self._pipeline.load_moved()

    def _scorer(self, model_id: str, models: ModelStore) -> Scorer:
        model = models.get(model_id)
        if model.kind != "reward":
            message = f"{model_id} ({model.display_name}) is a {model.kind} model; scoring needs a reward model"
            raise InvalidArgumentError(message, [FieldViolation("model_id", message)])
        base_directory = models.fetch(model.base_model_id) if model.base_model_id else None
        directory = models.fetch(model_id)
        self._pipeline.load_moved()
        config = ScorerConfig(
            dtype=self._settings.dtype,
            max_tokens=self._settings.max_tokens,
            batch_tokens=self._settings.batch_tokens,
            engine=self._settings.engine,
            vllm_options=self._settings.vllm_options,
            memory_share=self._settings.gpu_memory_fraction,
        )
        return load_scorer(model_id, directory, base_directory=base_directory, config=config)
