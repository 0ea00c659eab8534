"""Asking a judge many questions at once; each answer is kept as it comes, and paid for once."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Event

from madpo.errors import CorruptObjectError, FailedPreconditionError, NotFoundError, UnknownFormatError
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.worker.phase import Phase
from madpo.worker.workspace import Run
from madpo_evaluator.judging.endpoint import Endpoint, Reply
from madpo_evaluator.judging.judge import Judge
from madpo_evaluator.judging.question import Question, read_verdict
from madpo_evaluator.settings import EvaluatorSettings

_TRIES = 2
"""An answer without a verdict is asked for once more."""
_LOOK_EVERY_S = 0.5


class KeptReplies:
    """What a judge has answered in a job, each under the SHA-256 of its question: another attempt asks for the rest."""

    def __init__(self, store: ObjectStore, job_id: str) -> None:
        self._store, self._job_id = store, job_id

    def get(self, question: str) -> Reply | None:
        """An earlier answer; None where there is none, or none that is whole."""
        key = keys.judgement(self._job_id, question=question)
        with contextlib.suppress(NotFoundError, CorruptObjectError, UnknownFormatError), documents.reading(key):
            return Reply(**documents.known_fields(Reply, documents.unseal(self._store.get(key), key=key)))
        return None

    def put(self, question: str, reply: Reply) -> None:
        """Keep an answer."""
        self._store.put(keys.judgement(self._job_id, question=question), documents.seal(asdict(reply)))

    def remove(self) -> None:
        """They are among the artifacts of a job that is done."""
        bundle.delete(self._store, keys.judgements(self._job_id))


class Asking:
    """A judge with what it has answered in a job.

    Args:
        run: Whose progress is reported; it may be asked to stop.
        settings: Of the evaluator, with its judges.
        store: Where answers are kept.
        name: Of the judge.

    Raises:
        FailedPreconditionError: This evaluator has no such judge; says which it has.
    """

    def __init__(self, run: Run, settings: EvaluatorSettings, store: ObjectStore, name: str) -> None:
        self.name, self.judge = name, judge_named(settings, name)
        self.kept = KeptReplies(store, run.job.job_id)
        self._run, self._ended = run, Event()
        self._endpoint = Endpoint(name, self.judge, settings.judge_keys.get(name), wait=self._wait)

    def ask(self, questions: Sequence[Question]) -> dict[str, Reply]:
        """Answers by the digests of the questions; what is the same is asked once.

        What is on its way when the run is asked to stop, or when another question fails, is waited for and kept.

        Raises:
            Interrupted: The run is to stop.
        """
        wanted = {question.digest(self.judge): question for question in questions}
        phase = Phase(self._run, "judging", len(wanted), unit="questions")
        try:
            with ThreadPoolExecutor(self.judge.concurrency) as pool:
                return self._collect(pool, wanted, phase)
        finally:
            self._endpoint.close()

    def _collect(self, pool: ThreadPoolExecutor, wanted: Mapping[str, Question], phase: Phase) -> dict[str, Reply]:
        done: SimpleQueue[Future[tuple[str, Reply]]] = SimpleQueue()
        replies: dict[str, Reply] = {}
        try:
            for digest, question in wanted.items():
                pool.submit(self._answer_in_turn, digest, question).add_done_callback(done.put)
            while len(replies) < len(wanted):
                try:
                    digest, reply = done.get(timeout=_LOOK_EVERY_S).result()
                except Empty:
                    phase.advance(0)
                    continue
                except _Ended:
                    continue  # what ended it is about to arrive
                replies[digest] = reply
                phase.advance()
        except BaseException:
            self._ended.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return replies

    def _answer_in_turn(self, digest: str, question: Question) -> tuple[str, Reply]:
        """No other question is begun once one has failed."""
        if self._ended.is_set():
            raise _Ended
        try:
            return self._answer(digest, question)
        except BaseException:
            self._ended.set()
            raise

    def _answer(self, digest: str, question: Question) -> tuple[str, Reply]:
        earlier = self.kept.get(digest)
        if earlier is not None:
            return digest, earlier
        messages = question.messages()
        reply = Reply("")
        for _ in range(_TRIES):
            said = self._endpoint.ask(messages)
            reply = Reply(
                said.text,
                reply.prompt_tokens + said.prompt_tokens,
                reply.completion_tokens + said.completion_tokens,
                said.refusal,
            )
            if said.refusal or read_verdict(said.text) is not None:
                break
        self.kept.put(digest, reply)
        return digest, reply

    def _wait(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _Ended


class _Ended(Exception):  # noqa: N818 - control flow, not an error
    """Nobody waits for the answer any more."""


def judge_named(settings: EvaluatorSettings, name: str) -> Judge:
    """A judge of an evaluator. Raises FailedPreconditionError listing those it has."""
    if name not in settings.judges:
        known = ", ".join(sorted(settings.judges)) or "none"
        raise FailedPreconditionError(
            f"this evaluator has no judge {name!r}; it has {known} (its operator names judges in "
            f"{settings.variable('judges')})"
        )
    return settings.judges[name]
