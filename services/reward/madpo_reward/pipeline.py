"""From texts to scores: cache, door, tokenizer, batcher. Knows neither the wire nor where models come from."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

from madpo.errors import NonFiniteError, OverloadedError
from madpo.types import (
    RewardModelInfo,
    ScoreTimings,
    content_digest,
)
from madpo_reward.admission import Admission, Ticket
from madpo_reward.batcher import Batcher
from madpo_reward.cache import LruCache
from madpo_reward.encoding import Text
from madpo_reward.metrics import RewardMetrics
from madpo_reward.registry import ModelRegistry
from madpo_reward.scorer import Scorer
from madpo_reward.settings import RewardSettings

_BYTES_PER_TOKEN = 4
"""To guess a request's tokens at the door; the real number replaces the guess."""


@dataclass(frozen=True, slots=True)
class Score:
    """Raw logit of one text."""

    reward: float
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order asked for, all of one revision."""

    revision: str
    scores: Sequence[Score]
    timings: ScoreTimings


class Pipeline:
    """Scores texts with any number of reward models on one device.

    Args:
        load: Blocking loader by model id.
        settings: Bounds of queue, cache and resident models.
        metrics: Where everything is counted.
    """

    def __init__(self, load: Callable[[str], Scorer], *, settings: RewardSettings, metrics: RewardMetrics) -> None:
        self._max_pairs_per_request = settings.max_pairs_per_request
        self._metrics = metrics
        self._max_tokens, self._max_stall_s = settings.max_tokens, settings.max_stall_s
        self._max_load_stall_s = settings.max_load_stall_s
        self._scored = 0
        self._admission = Admission(
            settings.max_queue_tokens,
            max_bytes=settings.max_queue_bytes,
            max_queue_s=settings.max_queue_s,
            gauge=metrics.queue_tokens,
        )
        self._batcher = Batcher(metrics=metrics)
        self._models: ModelRegistry[Scorer] = ModelRegistry(
            partial(self._load, load), max_resident=settings.resident_models, gauge=metrics.resident_models
        )
        self._cache: LruCache[tuple[str, str], Score] = LruCache(settings.cache_entries)
        self._loaded: WeakSet[Scorer] = WeakSet()
        self.load_moved = self._models.moved
        """To be called by the loader whenever it gets on; by any thread."""

    def start(self) -> None:
        """Begin to run batches; texts that came earlier have waited."""
        self._batcher.start()

    async def stop(self) -> None:
        """End the threads; each finishes what it is doing."""
        await self._batcher.stop()
        await self._models.stop()
        for scorer in self._loaded:
            scorer.close()

    def _load(self, load: Callable[[str], Scorer], model_id: str) -> Scorer:
        scorer = load(model_id)
        self._loaded.add(scorer)
        return scorer

    async def ailment(self) -> str | None:
        """Why no text can be scored; None where one was since this was asked last, or a sample is now.

        A text that one model fails on is none; neither is a tokenizer that takes its time, which holds up its own model
        alone. A load that does not get on keeps all other models from being loaded.
        """
        if (stalled := self._models.stalled()) is not None and stalled[1] > self._max_load_stall_s:
            return f"the load of {stalled[0]} has not moved for {stalled[1]:.0f} s (max_load_stall_s)"
        if self._batcher.scored != self._scored:
            self._scored = self._batcher.scored
            return None
        try:
            async with asyncio.timeout(self._max_stall_s):
                return await self._fault_of_samples()
        except TimeoutError:
            return f"no sample was scored within {self._max_stall_s:g} s"

    async def _fault_of_samples(self) -> str | None:
        faults = []
        for scorer in self._models.loaded():
            try:
                await self._batcher.probe(partial(scorer.forward, scorer.sample()))
                return None
            except Exception as error:
                faults.append(str(error))
        if not faults:
            await self._batcher.probe(lambda: None)
        return "; ".join(faults) or None

    async def describe(self, model_id: str) -> RewardModelInfo:
        """What the model is, loading it when needed. Raises NotFoundError."""
        async with self._models.use(model_id) as scorer:
            return scorer.describe(max_pairs_per_request=self._max_pairs_per_request)

    @contextmanager
    def admit(self, model_id: str, texts: int, *, size_bytes: int, time_left_s: float | None) -> Iterator[Ticket]:
        """Let a request in, before anything of it is looked at, until the block ends.

        Args:
            model_id: That it asks.
            texts: That it asks scores of.
            size_bytes: Of all of it.
            time_left_s: Until its deadline; None without one.

        Raises:
            OverloadedError: No room in the queue, or no time.
        """
        tokens = min(size_bytes // _BYTES_PER_TOKEN + 1, texts * self._max_tokens)
        with (
            self._metrics.refusals.count_exceptions(OverloadedError),
            self._admission.admit(model_id, tokens, size_bytes=size_bytes, time_left_s=time_left_s) as ticket,
        ):
            yield ticket

    async def score(self, model_id: str, texts: Sequence[Text], ticket: Ticket) -> Scores:
        """Score all texts or none.

        Args:
            model_id: What scores them.
            texts: Of one request.
            ticket: That it was given by `admit`.

        Raises:
            NotFoundError: No such model.
            InvalidPairError: A text cannot be rendered; names its owner.
            OverloadedError: The texts have more tokens than their size let expect, and there is no room.
            NonFiniteError: The model gave NaN or infinity; names the owners.
        """
        async with self._models.use(model_id) as scorer:
            digests = [content_digest(text.prompt, text.response, options=text.options) for text in texts]
            known: dict[str, Score] = {}
            missing: dict[str, Text] = {}
            for digest, text in zip(digests, texts, strict=True):
                if score := self._cache.get((scorer.revision, digest)):
                    known[digest] = score
                else:
                    missing[digest] = text
            fresh, timings = await self._score_missing(scorer, missing, ticket)
            self._metrics.responses.labels(source="model").inc(len(fresh))
            self._metrics.responses.labels(source="cache").inc(len(texts) - len(fresh))
            known |= fresh
            return Scores(scorer.revision, [known[digest] for digest in digests], timings)

    async def _score_missing(
        self, scorer: Scorer, texts: Mapping[str, Text], ticket: Ticket
    ) -> tuple[Mapping[str, Score], ScoreTimings]:
        if not texts:
            return {}, ScoreTimings(queue_s=0.0, tokenize_s=0.0, forward_s=0.0)
        with ticket.work():
            start, arrival = time.monotonic(), self._batcher.arrive()
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(scorer.tokenizing, scorer.encode_texts, list(texts.values()))
            tokenize_s = time.monotonic() - start
            self._metrics.duration.labels(phase="tokenize").observe(tokenize_s)
            units = scorer.plan(encoded)
            ticket.resize(sum(unit.positions for unit in units))
            batch = await self._batcher.score(scorer, units, arrival=arrival)
        _refuse_non_finite(scorer, list(texts.values()), batch.rewards)
        fresh = {
            digest: Score(reward, len(tokens), tokens.truncated)
            for digest, reward, tokens in zip(texts, batch.rewards, encoded, strict=True)
        }
        for digest, score in fresh.items():
            self._cache.put((scorer.revision, digest), score)
        return fresh, ScoreTimings(queue_s=batch.queue_s, tokenize_s=tokenize_s, forward_s=batch.forward_s)


def _refuse_non_finite(scorer: Scorer, texts: Sequence[Text], rewards: Sequence[float]) -> None:
    owners = [text.owner_id for text, reward in zip(texts, rewards, strict=True) if not math.isfinite(reward)]
    if owners:
        unique = list(dict.fromkeys(owners))
        raise NonFiniteError(f"{scorer.model_id} scored {', '.join(unique)} as NaN or infinite", unique)
