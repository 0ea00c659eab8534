"""Reward margins ahead of need: asked from the live reward service, journaled before use, never asked twice.

A frozen reward model gives constant margins, so a margin once learned serves all epochs and all attempts. The journal
entry is stored before the first step that uses the margin: a resumed step takes the very same number.
"""

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from madpo.data.order import Schedule
from madpo.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NonFiniteError,
    OverloadedError,
    RevisionMismatchError,
    UnavailableError,
)
from madpo.jobs import MarginParameters
from madpo.ports import ObjectStore, RewardScorer
from madpo.storage import keys
from madpo.types import PreferencePair, ScoredPair
from madpo_trainer.lookahead import LookAhead
from madpo_trainer.ranks import Interrupted, Ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REQUESTS_IN_FLIGHT = 4
_PAIRS_PER_REQUEST = 256
"""Of those asked for outside the schedule; each reply is journaled at once."""
_PAIRS_AHEAD = 64
"""Of one request of the look-ahead, more only where a step has more; beyond it a pair gets no cheaper."""
OUTAGE = (UnavailableError, OverloadedError, DeadlineExceededError)
"""What an outage of the reward service looks like."""


class MarginSource(Protocol):
    """Gives the reward margins of a step's rows."""

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins of any pairs, held-out ones too; called before `start`.

        Raises:
            NonFiniteError: A margin is NaN or infinite.
            Interrupted: The run was asked to stop while waiting.
        """
        ...

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        ...

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows in schedule order; None where the job trains on without one (weight 1).

        Raises:
            NonFiniteError: A margin is NaN or infinite.
            Interrupted: The run was asked to stop while waiting.
        """
        ...

    def summary(self) -> dict[str, float]:
        """Counts of training pairs so far: requested, scored_live, from_journal, neutral; wait_s of the steps."""
        ...

    def close(self) -> None:
        """Stop looking ahead."""
        ...


class DatasetMargins:
    """Margins that came with the dataset."""

    def __init__(self, pairs: Sequence[PreferencePair], schedule: Schedule) -> None:
        missing = [pair.row for pair in pairs if pair.reward_margin is None]
        if missing:
            raise InvalidArgumentError(
                f"margin.source=dataset needs a margin in every row; {len(missing)} rows have none, "
                f"the first in row {missing[0]} (add a `margin` column, or use margin.source=reward_service)"
            )
        self._pairs, self._schedule = pairs, schedule

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins that came with these pairs."""
        return [pair.reward_margin for pair in pairs]

    def start(self, step: int) -> None:
        """Nothing to look ahead for."""

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows."""
        return [self._pairs[index].reward_margin for index in self._schedule.batch(step)]

    def summary(self) -> dict[str, float]:
        """No scorer was asked."""
        return {"requested": 0, "scored_live": 0, "from_journal": 0, "neutral": 0, "wait_s": 0.0}

    def close(self) -> None:
        """Nothing to stop."""


class MarginJournal:
    """Margins as they were learned, in the object store, one object per reply."""

    def __init__(self, store: ObjectStore, *, job_id: str, attempt: int) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self._next_part = 0

    def load(self, revision: str) -> dict[str, float | None]:
        """Margins by pair id from all attempts so far; the earliest entry of a pair counts.

        Raises:
            RevisionMismatchError: The journal was written under another revision of the reward model.
        """
        margins: dict[str, float | None] = {}
        for entry in self._store.list(keys.margin_journal(self._job_id) + "/"):
            for line in self._store.get(entry.key).decode().splitlines():
                record = json.loads(line)
                if record["revision"] != revision:
                    raise RevisionMismatchError(
                        f"job {self._job_id} began with reward-model revision {record['revision']}, the service now "
                        f"serves {revision} (restore the scorer's dtype and batch settings, or start a new job)"
                    )
                margins.setdefault(record["pair_id"], record["reward_margin"])
        return margins

    def append(self, margins: dict[str, float | None], revision: str) -> None:
        """Store what one reply brought; None marks a pair that goes without a margin."""
        lines = [
            json.dumps({"pair_id": pair_id, "reward_margin": margin, "revision": revision})
            for pair_id, margin in margins.items()
        ]
        key = keys.margin_journal_part(self._job_id, attempt=self._attempt, part=self._next_part)
        self._next_part += 1
        self._store.put(key, ("\n".join(lines) + "\n").encode())


class RemoteMargins:
    """Asks the reward service for the batches ahead while the current one computes.

    A thread runs the requests: as far ahead of the step as the scorer's latency asks for, at most `lookahead_batches`
    batches, a few requests in flight. While no scorer answers, the job pauses, goes on with weight 1, or fails, as
    `MarginParameters.outage_policy` says.

    Args:
        connect: Makes the scorer inside the thread's event loop.
        model_id: The reward model.
        revision: The only revision whose scores are taken.
        interrupted: Whether the run was asked to stop; looked at while waiting.
    """

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        schedule: Schedule,
        *,
        connect: Callable[[], RewardScorer],
        model_id: str,
        revision: str,
        journal: MarginJournal,
        parameters: MarginParameters,
        interrupted: Callable[[], bool],
    ) -> None:
        self._pairs, self._schedule = pairs, schedule
        self._connect, self._model_id, self._revision = connect, model_id, revision
        self._journal, self._parameters, self._interrupted = journal, parameters, interrupted
        self._pair_ids = [pair.pair_id for pair in pairs]
        self._training_ids = frozenset(self._pair_ids)
        self._known = journal.load(revision)
        self._from_journal = len(self._training_ids & self._known.keys())
        self._ahead = LookAhead(
            bound=parameters.lookahead_batches, message_steps=math.ceil(_PAIRS_AHEAD / schedule.batch_size)
        )
        self._condition = threading.Condition()
        self._step = 0
        self._taken_time: float | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self._scored_live = 0
        self._wait_s = 0.0
        self._thread = threading.Thread(target=self._run, name="margins", daemon=True)

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins of any pairs, journaled like those of the steps."""
        missing = {pair.pair_id: pair for pair in pairs if pair.pair_id not in self._known}
        if missing:
            asyncio.run(self._score_now(missing))
        return [self._known[pair.pair_id] for pair in pairs]

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        self._step = step
        self._thread.start()

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows, waiting for those still on their way."""
        ids = [self._pair_ids[index] for index in self._schedule.batch(step)]
        start = time.monotonic()
        with self._condition:
            if self._taken_time is not None:
                self._ahead.observe_step(start - self._taken_time)
            self._step = step
            self._condition.notify_all()
            while not all(pair_id in self._known for pair_id in ids):
                if self._failure is not None:
                    raise self._failure
                if not self._condition.wait(timeout=0.5) and self._interrupted():
                    raise Interrupted
            self._taken_time = time.monotonic()
            self._wait_s += self._taken_time - start
            return [self._known[pair_id] for pair_id in ids]

    def summary(self) -> dict[str, float]:
        """Counts so far."""
        known = [margin for pair_id, margin in self._known.items() if pair_id in self._training_ids]
        neutral = sum(margin is None for margin in known)
        return {
            "requested": len(known),
            "scored_live": self._scored_live,
            "from_journal": self._from_journal,
            "neutral": neutral,
            "wait_s": self._wait_s,
        }

    def close(self) -> None:
        """Stop looking ahead."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            asyncio.run(self._look_ahead())
        except BaseException as error:
            with self._condition:
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                self._failure = error
                self._condition.notify_all()

    async def _score_now(self, pairs: dict[str, PreferencePair]) -> None:
        """Score pairs, a few requests in flight; looks up now and then whether the run was asked to stop."""
        scorer = self._connect()
        slots = asyncio.Semaphore(_REQUESTS_IN_FLIGHT)
        entries = list(pairs.items())

        async def score(batch: dict[str, PreferencePair]) -> None:
            async with slots:
                await self._score(scorer, batch)

        batches = [
            dict(entries[first : first + _PAIRS_PER_REQUEST]) for first in range(0, len(entries), _PAIRS_PER_REQUEST)
        ]
        requests = [asyncio.create_task(score(batch)) for batch in batches]
        try:
            waiting: set[asyncio.Task[None]] = set(requests)
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                for request in done:
                    request.result()
                if not done and self._interrupted():
                    raise Interrupted
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)

    async def _look_ahead(self) -> None:
        scorer = self._connect()
        slots = asyncio.Semaphore(_REQUESTS_IN_FLIGHT)
        asked: set[str] = set()
        async with asyncio.TaskGroup() as requests:
            step, end = self._step, self._step + 1  # the first step waits for nobody else
            while step < self._schedule.total_steps:
                for batch in self._unasked(range(step, end), asked):
                    await slots.acquire()
                    task = requests.create_task(self._score(scorer, batch))
                    task.add_done_callback(lambda _: slots.release())
                if self._training_ids <= self._known.keys():
                    return
                step, end = end, await asyncio.to_thread(self._wait_until_due, end)
                if self._closed:
                    return

    def _unasked(self, steps: range, asked: set[str]) -> Iterator[dict[str, PreferencePair]]:
        """Pairs of these steps that nobody was asked for, a request at a time; notes them in `asked`.

        A request spans no more steps than are left until its first one, so that none is late for its size.
        """
        batch: dict[str, PreferencePair] = {}
        first = steps.start
        for step in steps:
            new = {self._pair_ids[index]: self._pairs[index] for index in self._schedule.batch(step)}
            new = {
                pair_id: pair for pair_id, pair in new.items() if pair_id not in self._known and pair_id not in asked
            }
            if len(batch) + len(new) > _PAIRS_AHEAD or step - first >= max(1, first - self._step):
                if batch:
                    yield batch
                batch, first = {}, step
            batch |= new
            asked.update(new)
        if batch:
            yield batch

    def _wait_until_due(self, asked_until: int) -> int:
        """Block until steps from `asked_until` on are to be asked for; the step to ask up to."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or asked_until < self._step + self._ahead.least)
            return min(max(self._step + self._ahead.most, asked_until + 1), self._schedule.total_steps)

    async def _score(self, scorer: RewardScorer, batch: dict[str, PreferencePair]) -> None:
        start = time.monotonic()
        margins = await self._ask(scorer, batch)
        await asyncio.to_thread(self._journal.append, margins, self._revision)
        with self._condition:
            self._ahead.observe_latency(time.monotonic() - start)
            self._known.update(margins)
            self._scored_live += sum(
                margin is not None and pair_id in self._training_ids for pair_id, margin in margins.items()
            )
            self._condition.notify_all()

    async def _ask(self, scorer: RewardScorer, batch: dict[str, PreferencePair]) -> dict[str, float | None]:
        def ask() -> Awaitable[list[ScoredPair]]:
            return scorer.score_pairs(self._model_id, list(batch.values()), revision=self._revision)

        try:
            scores = await outlast(ask, self._parameters)
        except OUTAGE:
            if self._parameters.outage_policy != "neutral":
                raise
            logger.warning("no scorer answers; going on with weight 1", extra={"pairs": len(batch)})
            return dict.fromkeys(batch)
        bad = [score.pair_id for score in scores if not math.isfinite(score.reward_margin)]
        if bad:
            raise NonFiniteError(f"the reward model gave a non-finite margin for {len(bad)} pairs: {bad[:5]}", bad)
        return {score.pair_id: score.reward_margin for score in scores}


class SharedMargins:
    """Margins for all ranks of a run from the source that the leader has.

    Args:
        make: Makes the source, on the leader.
        ranks: Of the run.
    """

    def __init__(self, make: Callable[[], MarginSource], ranks: Ranks) -> None:
        self._ranks = ranks
        self._source: MarginSource | None = None

        def keep() -> None:
            self._source = make()

        ranks.lead(keep)

    def of(self, pairs: Sequence[PreferencePair]) -> list[float | None]:
        """Margins of any pairs; all ranks wait for the leader's source."""
        return self._ranks.lead(lambda: self._leaders.of(pairs))

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        if self._source is not None:
            self._source.start(step)

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows; all ranks wait for the leader's source."""
        return self._ranks.lead(lambda: self._leaders.take(step))

    def summary(self) -> dict[str, float]:
        """Counts so far, on all ranks."""
        return self._ranks.lead(lambda: self._leaders.summary())

    def close(self) -> None:
        """Stop looking ahead."""
        if self._source is not None:
            self._source.close()

    @property
    def _leaders(self) -> MarginSource:
        assert self._source is not None
        return self._source


async def outlast(call: Callable[[], Awaitable[T]], parameters: MarginParameters) -> T:
    """Call a scorer until it answers; with `outage_policy` other than `pause`, its first outage is raised.

    Raises:
        FailedPreconditionError: No scorer answered for `outage_budget_s`.
    """
    give_up = time.monotonic() + parameters.outage_budget_s
    delay_s = 0.5
    while True:
        try:
            return await call()
        except OUTAGE as error:
            if parameters.outage_policy != "pause":
                raise
            if time.monotonic() > give_up:
                raise FailedPreconditionError(
                    f"no scorer answered for {parameters.outage_budget_s:.0f} s: {error} "
                    "(start a reward service, or raise margin.outage_budget_s)"
                ) from error
            logger.warning("waiting for a scorer", extra={"error": str(error)})
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, 10.0)
