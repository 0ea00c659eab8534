"""Resident models: loaded when first asked for, once, and never evicted while somebody uses them."""

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client import Gauge

from madpo.errors import FailedPreconditionError, InvalidArgumentError, MadpoError, OverloadedError
from madpo_reward.cache import LruCache

logger = logging.getLogger(__name__)

M = TypeVar("M")

_UNFIT_S = 60.0
"""For so long a model that cannot be used is not loaded again: its files are always the same."""
_UNFIT_MODELS = 1024


@dataclass(slots=True)
class _Resident(Generic[M]):
    loading: asyncio.Future[M]
    users: int = 0


class ModelRegistry(Generic[M]):
    """At most `max_resident` models; the one unused for longest makes room. Used from one event loop.

    Args:
        load: Blocking loader by model id; runs in a thread of its own, one at a time, and says by `moved` that it gets
            on.
        max_resident: Bound on models in memory, loading ones included.
        gauge: Where their number is shown.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        load: Callable[[str], M],
        *,
        max_resident: int,
        gauge: Gauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._max_resident, self._gauge, self._clock = load, max_resident, gauge, clock
        self._unfit: LruCache[str, tuple[float, MadpoError]] = LruCache(_UNFIT_MODELS)
        self._residents: OrderedDict[str, _Resident[M]] = OrderedDict()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self._in_work: tuple[str, float] | None = None
        """Which model is being loaded, and when that moved last."""

    @asynccontextmanager
    async def use(self, model_id: str) -> AsyncIterator[M]:
        """The model, loaded when needed, held in memory until the block ends.

        Raises:
            OverloadedError: All resident models are in use; carries a retry hint.
            InvalidArgumentError, FailedPreconditionError: The model cannot be used; tried again after a minute, so that
                one whose load takes long keeps the others' waiting no longer than once in that time.
            MadpoError: What else the loader raised; the next caller tries again.
        """
        resident = self._residents.get(model_id) or self._begin_load(model_id)
        self._residents.move_to_end(model_id)
        resident.users += 1
        try:
            # Shielded: a caller that gives up must not end the load others wait for.
            yield await asyncio.shield(resident.loading)
        finally:
            resident.users -= 1

    def loaded(self) -> list[M]:
        """The models that can be used at once, the one used last first."""
        done = [each.loading for each in reversed(self._residents.values()) if each.loading.done()]
        return [loading.result() for loading in done if not loading.cancelled() and loading.exception() is None]

    def moved(self) -> None:
        """Note that the load in work gets on; by any thread."""
        if (in_work := self._in_work) is not None:
            self._in_work = (in_work[0], self._clock())

    def stalled(self) -> tuple[str, float] | None:
        """The model that is being loaded, and for how many seconds nothing of that has moved; None without one."""
        if (in_work := self._in_work) is None:
            return None
        return in_work[0], self._clock() - in_work[1]

    async def stop(self) -> None:
        """Forget all models, once a load in work has ended."""
        self._residents.clear()
        await asyncio.to_thread(self._loader.shutdown, cancel_futures=True)

    def _begin_load(self, model_id: str) -> _Resident[M]:
        self._refuse_unfit(model_id)
        self._make_room()
        loading = asyncio.get_running_loop().run_in_executor(self._loader, self._watched, model_id)
        resident = self._residents[model_id] = _Resident(loading)
        self._gauge.set(len(self._residents))
        loading.add_done_callback(lambda done: self._forget_failed(model_id, done))
        return resident

    def _watched(self, model_id: str) -> M:
        self._in_work = (model_id, self._clock())
        try:
            return self._load(model_id)
        finally:
            self._in_work = None

    def _forget_failed(self, model_id: str, loading: asyncio.Future[M]) -> None:
        if loading.cancelled() or loading.exception() is not None:
            self._residents.pop(model_id, None)
            self._gauge.set(len(self._residents))
        if not loading.cancelled() and isinstance(
            error := loading.exception(), InvalidArgumentError | FailedPreconditionError
        ):
            self._unfit.put(model_id, (self._clock() + _UNFIT_S, error))

    def _refuse_unfit(self, model_id: str) -> None:
        until, error = self._unfit.get(model_id) or (0.0, None)
        if error is not None and self._clock() < until:
            raise error.with_traceback(None)

    def _make_room(self) -> None:
        if len(self._residents) < self._max_resident:
            return
        idle = next((key for key, model in self._residents.items() if not model.users and model.loading.done()), None)
        if idle is None:
            raise OverloadedError(
                f"all {self._max_resident} resident models are in use (set MADPO_REWARD_MAX_RESIDENT_MODELS)",
                retry_after_s=1.0,
            )
        del self._residents[idle]
        gc.collect()  # modules may sit in reference cycles
        logger.info("model evicted", extra={"model_id": idle})
