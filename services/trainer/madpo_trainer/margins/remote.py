"""Reward margins ahead of need: asked from the live reward service, journaled before use, never asked twice.

A frozen reward model gives constant margins, so a margin once learned serves all epochs and all attempts. The journal
entry is stored before the first step that uses the margin: a resumed step takes the very same number.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from madpo.data.order import Schedule
from madpo.errors import FailedPreconditionError, InternalError, InvalidPairError, NonFiniteError
from madpo.jobs.methods import MarginParameters
from madpo.jobs.training import Overlong
from madpo.ports import RewardScorer
from madpo.scoring.connection import REQUESTS_IN_FLIGHT
from madpo.scoring.outage import OUTAGE, call_until_answered
from madpo.spelling import number_of
from madpo.types import PreferencePair, ScoredPair
from madpo.worker.phase import BeginPhase, Interrupted, Phase
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.lookahead import LookAhead

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAIRS_PER_REQUEST = 256
"""Of those asked for outside the schedule; each reply is journaled at once."""
_PAIRS_AHEAD = 64
"""Of one request of the look-ahead, more only where a step has more; beyond it a pair gets no cheaper."""
_PAIRS_AT_ONCE = 4096
"""Of those, in memory at a time."""
_POLL_S = 0.5
"""How often a wait looks up whether the run was asked to stop."""
_CLOSE_S = 5.0
_NAMED_ROWS = 20


class RemoteMargins:
    """Asks the reward service for the batches ahead while the current one computes.

    A thread runs an event loop with the requests: as far ahead of the step as the scorer's latency asks for, at most
    `lookahead_batches` batches. Nothing in that loop blocks a thread for a step to come: the trainer's thread wakes it,
    so whatever ends it reaches `take` at once. While no scorer answers, the job pauses, goes on with weight 1, or
    fails, as `MarginParameters.outage_policy` says; while the journal's store is away, it pauses.

    Args:
        connect: Makes the scorer inside the thread's event loop.
        model_id: The reward model.
        revision: The only revision whose scores are taken.
        interrupted: Whether the run was asked to stop; looked at while waiting.
        phase: Counts the margins asked for outside the schedule.
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
        phase: BeginPhase | None = None,
        overlong: Overlong = "truncate_prompt",
    ) -> None:
        self._overlong = overlong
        self._pairs, self._schedule = pairs, schedule
        self._connect, self._model_id, self._revision = connect, model_id, revision
        self._journal, self._parameters, self._interrupted, self._phase = journal, parameters, interrupted, phase
        # A pair that went without a margin in an outage would be given one now.
        is_same_again = parameters.outage_policy != "neutral"
        self._known, of_training = journal.load(revision, without_damaged=is_same_again)
        self._from_journal = len(of_training)
        self._neutral = sum(self._known[pair_id] is None for pair_id in of_training)
        self._step_ids: dict[int, list[str]] = {}
        """Pair ids of the steps that were asked for and not taken yet."""
        self._ahead = LookAhead(
            bound=parameters.lookahead_batches, message_steps=math.ceil(_PAIRS_AHEAD / schedule.batch_size)
        )
        self._condition = threading.Condition()
        self._step = 0
        self._taken_time: float | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self._asked_live = self._scored_live = 0
        self._wait_s = 0.0
        self._wake: Callable[[], object] = lambda: None
        self._cancel: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="margins", daemon=True)

    def of(self, pairs: Sequence[PreferencePair], *, training: bool = False) -> list[float | None]:
        """Margins of any pairs, journaled like those of the steps."""
        phase = self._phase("reward margins", len(pairs), unit="pairs") if self._phase else None
        margins: list[float | None] = []
        for first in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[first : first + _PAIRS_AT_ONCE]
            missing = {pair.pair_id: pair for pair in some if pair.pair_id not in self._known}
            if phase is not None:
                phase.advance(len(some) - len(missing))
            if missing:
                asyncio.run(self._score_now(missing, phase, training=training))
            margins += [self._known[pair.pair_id] for pair in some]
        return margins

    def start(self, step: int) -> None:
        """Begin to look ahead from a step on."""
        self._step = step
        self._thread.start()

    def take(self, step: int) -> list[float | None]:
        """Margins of the step's rows, waiting for those still on their way."""
        ids = self._step_ids.pop(step, None) or self._pair_ids(step)
        start = time.monotonic()
        with self._condition:
            if self._taken_time is not None:
                self._ahead.observe_step(start - self._taken_time)
            self._step = step
            self._wake()
            while not all(pair_id in self._known for pair_id in ids):
                self._raise_if_over(step)
                if not self._condition.wait(timeout=_POLL_S) and self._interrupted():
                    raise Interrupted
            self._taken_time = time.monotonic()
            self._wait_s += self._taken_time - start
            return [self._known[pair_id] for pair_id in ids]

    def summary(self) -> dict[str, float]:
        """Counts so far."""
        return {
            "requested": self._from_journal + self._asked_live,
            "scored_live": self._scored_live,
            "from_journal": self._from_journal,
            "neutral": self._neutral,
            "truncated": len(self._journal.truncated),
            "truncated_alike": sum(self._known.get(pair_id) == 0.0 for pair_id in self._journal.truncated),
            "wait_s": self._wait_s,
        }

    def was_truncated(self, pair_id: str) -> bool:
        """Whether the reward model read only a part of a pair, as far as is known."""
        return pair_id in self._journal.truncated

    def close(self) -> None:
        """Stop looking ahead."""
        with self._condition:
            self._closed = True
            self._cancel()
        if self._thread.is_alive():
            self._thread.join(timeout=_CLOSE_S)

    def _pair_ids(self, step: int) -> list[str]:
        return [self._pairs[index].pair_id for index in self._schedule.batch(step)]

    def _raise_if_over(self, step: int) -> None:
        """Raise what ended the look-ahead: the margins that `take` waits for will not come."""
        if self._failure is not None:
            raise self._failure
        if not self._thread.is_alive():
            raise InternalError(f"the look-ahead ended before the margins of step {step + 1} were known")

    def _run(self) -> None:
        try:
            asyncio.run(self._look_ahead())
        except BaseException as error:
            self._fail(error)

    async def _look_ahead(self) -> None:
        loop, self._due = asyncio.get_running_loop(), asyncio.Event()

        def soon(act: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
                loop.call_soon_threadsafe(act)

        task = asyncio.current_task()
        assert task is not None
        with self._condition:
            if self._closed:
                return
            self._wake, self._cancel = lambda: soon(self._due.set), lambda: soon(task.cancel)
        try:
            await self._ask_ahead(self._connect())
        except BaseException as error:
            # Here, not after the loop has ended: on its way out it may wait for writes that hang.
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        with self._condition:
            self._failure = self._failure or error
            self._condition.notify_all()

    async def _ask_ahead(self, scorer: RewardScorer) -> None:
        asked: set[str] = set()
        # No more than the client lets through: what waits in its queue would look like a slow scorer.
        slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
        async with asyncio.TaskGroup() as requests:
            first = self._step
            step, end = first, first + 1  # the first step waits for nobody else
            # Behind an epoch everything was asked for.
            while step < self._schedule.total_steps and (step - first) * self._schedule.batch_size < len(self._pairs):
                for batch in self._unasked(range(step, end), asked):
                    await slots.acquire()
                    task = requests.create_task(self._score(scorer, batch, training=True))
                    task.add_done_callback(lambda _: slots.release())
                step, end = end, await self._until_due(end)

    def _unasked(self, steps: range, asked: set[str]) -> Iterator[dict[str, PreferencePair]]:
        """Pairs of these steps that nobody was asked for, a request at a time; notes them in `asked`.

        A request spans no more steps than are left until its first one, so that none is late for its size.
        """
        batch: dict[str, PreferencePair] = {}
        first = steps.start
        for step in steps:
            pairs = [self._pairs[index] for index in self._schedule.batch(step)]
            if step >= self._step:
                self._step_ids[step] = [pair.pair_id for pair in pairs]
            new = {
                pair.pair_id: pair for pair in pairs if pair.pair_id not in self._known and pair.pair_id not in asked
            }
            if len(batch) + len(new) > _PAIRS_AHEAD or step - first >= max(1, first - self._step):
                if batch:
                    yield batch
                batch, first = {}, step
            batch |= new
            asked.update(new)
        if batch:
            yield batch

    async def _until_due(self, asked_until: int) -> int:
        """Wait until steps from `asked_until` on are to be asked for; the step to ask up to."""
        while True:
            self._due.clear()
            with self._condition:
                if asked_until < self._step + self._ahead.least:
                    return min(max(self._step + self._ahead.most, asked_until + 1), self._schedule.total_steps)
            await self._due.wait()

    async def _score_now(self, pairs: dict[str, PreferencePair], phase: Phase | None, *, training: bool) -> None:
        """Score pairs, a few requests in flight."""
        scorer, entries = self._connect(), list(pairs.items())
        batches = (entries[first : first + _PAIRS_PER_REQUEST] for first in range(0, len(entries), _PAIRS_PER_REQUEST))

        async def work() -> None:
            for batch in batches:  # shared: each worker takes the next one
                await self._score(scorer, dict(batch), training=training)
                if phase is not None:
                    phase.advance(len(batch))

        await unless_interrupted([work() for _ in range(REQUESTS_IN_FLIGHT)], self._interrupted)

    async def _score(self, scorer: RewardScorer, batch: dict[str, PreferencePair], *, training: bool) -> None:
        start = time.monotonic()
        margins, truncated = await self._ask(scorer, batch)
        await self._keep(margins, truncated, training=training)
        with self._condition:
            self._ahead.observe_latency(time.monotonic() - start)
            self._known.update(margins)
            if training:
                neutral = sum(margin is None for margin in margins.values())
                self._asked_live += len(margins)
                self._scored_live += len(margins) - neutral
                self._neutral += neutral
            self._condition.notify_all()
        self._wake()

    async def _keep(self, margins: dict[str, float | None], truncated: frozenset[str], *, training: bool) -> None:
        part = self._journal.next_part()
        await call_until_answered(
            lambda: asyncio.to_thread(
                self._journal.append, part, margins, self._revision, training=training, truncated=truncated
            ),
            budget_s=self._parameters.outage_budget_s,
            neighbour="the object store, to journal margins",
        )

    async def _ask(
        self, scorer: RewardScorer, batch: dict[str, PreferencePair]
    ) -> tuple[dict[str, float | None], frozenset[str]]:
        """Margins of pairs, and which of them the reward model read only in part."""

        def ask() -> Awaitable[list[ScoredPair]]:
            return scorer.score_pairs(self._model_id, list(batch.values()), revision=self._revision)

        try:
            scores = await ask_scorer(ask, self._parameters)
        except OUTAGE:
            if self._parameters.outage_policy != "neutral":
                raise
            logger.warning("no scorer answers; going on with weight 1", extra={"pairs": len(batch)})
            return dict.fromkeys(batch), frozenset()
        bad = [score.pair_id for score in scores if not math.isfinite(score.reward_margin)]
        if bad:
            raise NonFiniteError(
                f"the reward model gave a non-finite margin for {number_of(len(bad), 'pair')}: {bad[:5]}", bad
            )
        cut = frozenset(score.pair_id for score in scores if score.chosen_truncated or score.rejected_truncated)
        if cut:
            self._refuse_or_warn([batch[pair_id].row for pair_id in sorted(cut)])
        return {score.pair_id: score.reward_margin for score in scores}, cut

    def _refuse_or_warn(self, rows: Sequence[int]) -> None:
        """Pairs are longer than the reward model reads. Raises InvalidPairError where the job keeps none of those."""
        named = (
            f"the reward model read only a part of {number_of(len(rows), 'pair')}; rows {sorted(rows)[:_NAMED_ROWS]}"
        )
        if self._overlong == "error":
            raise InvalidPairError(
                f"{named} (take a reward model with a longer context, or let training.overlong drop them, or truncate)"
            )
        logger.warning(named)


async def ask_scorer(call: Callable[[], Awaitable[T]], parameters: MarginParameters) -> T:
    """Call a scorer; with `outage_policy=pause` until one answers.

    Raises:
        FailedPreconditionError: No scorer answered for `outage_budget_s`.
        UnavailableError, OverloadedError, DeadlineExceededError: An outage, under another policy.
    """
    if parameters.outage_policy != "pause":
        return await call()
    try:
        return await call_until_answered(call, budget_s=parameters.outage_budget_s, neighbour="a scorer")
    except OUTAGE as error:
        raise FailedPreconditionError(
            f"no scorer answered for {parameters.outage_budget_s:.0f} s: {error} "
            "(start a reward service, or raise margin.outage_budget_s)"
        ) from error


async def unless_interrupted(calls: Sequence[Coroutine[Any, Any, None]], interrupted: Callable[[], bool]) -> None:
    """Run calls together to their end; the first failure ends all.

    Raises:
        Interrupted: The run was asked to stop meanwhile.
    """
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        waiting: set[asyncio.Task[None]] = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if waiting and interrupted():
                raise Interrupted
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
