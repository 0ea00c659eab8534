"""From names, beginnings of ids and `@last` to ids: looked up at the gateway, in this one place."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import (
    ANY_MODEL,
    ModelReference,
    Need,
    NeedsDataset,
    NeedsJobs,
    NeedsModel,
    map_references,
)
from madpo.jobs.registry import KINDS
from madpo.spelling import did_you_mean
from madpo.types import Dataset, DatasetKind, Job, JobKind, JobState, Model, StoreFinding
from madpo_client.job import JobHandle
from madpo_client.references import ModelLike, model_reference
from madpo_client.session import Session
from madpo_client.sources import source_name

logger = logging.getLogger(__name__)
"""Says, as INFO, which id a text was taken for, and which name something has; as WARNING, what is left out."""

_ID = re.compile(r"(?:job|model|dataset)-[0-9a-f]{32}")
_BEGINNING = re.compile(r"(?:(job|model|dataset)-)?([0-9a-f]{4,32})")
_CHECKPOINT = re.compile(r"(.+)@([0-9]+)", re.DOTALL)
_LAST = re.compile(r"@last(?::(.+))?", re.DOTALL)
_LISTED = 10
_SUPPLIES = frozenset({JobState.WAITING, JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED})
"""States of a job from which others may still have what it makes."""


def needs_lookup(text: str) -> bool:
    """Whether a text stands for something that only the gateway knows the id of."""
    checkpoint = _CHECKPOINT.fullmatch(text)
    return bool(text) and text.isprintable() and not _ID.fullmatch(checkpoint[1] if checkpoint else text)


@dataclass(frozen=True, slots=True)
class _Found:
    """Something at the gateway that a text may stand for."""

    id: str
    name: str
    kinds: tuple[str, ...]
    """Words for `@last:WORD`, the first for people too."""
    create_time: float
    fits: bool = True
    """Whether it is what is needed here."""
    state: str = ""
    left: tuple[str, ...] = ()
    """What this job has left: a model, a dataset."""

    def is_meant_by(self, text: str) -> bool:
        """Whether a text is a beginning of its id."""
        match = _BEGINNING.fullmatch(text)
        if not match:
            return False
        sort, _, digits = self.id.partition("-")
        return match[1] in (None, sort) and digits.startswith(match[2])

    def __str__(self) -> str:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.create_time))
        return "  ".join(part for part in (self.id, made, self.kinds[0], self.state, self.name) if part)


def say_kept_name(stored: Dataset | Model, name: str) -> None:
    """Tell that content which was stored before keeps the name it has: another one would find nothing."""
    if name and name != stored.display_name:
        found = stored.model_id if isinstance(stored, Model) else stored.dataset_id
        kept = f"the name {stored.display_name!r}" if stored.display_name else "no name"
        logger.info("the same content is stored already: %s keeps %s, and is not called %r", found, kept, name)


def say_unreadable(finding: StoreFinding) -> None:
    """Tell that something is left out of a list because it cannot be read."""
    thing_id = finding.key.split("/")[1]
    what = "upgrade madpo" if finding.verdict == "newer" else "`madpo store check` says all that is damaged"
    logger.warning("%s cannot be read and is left out: %s (%s)", thing_id, finding.detail, what)


class References:
    """Finds what texts stand for among the jobs, models and datasets of a gateway; what is an id costs no call.

    Every method raises NotFoundError where nothing fits, and InvalidArgumentError where more than one does, with all of
    them.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def job_id(self, job: JobHandle | str, *, kinds: frozenset[JobKind] = frozenset(JobKind)) -> str:
        """The id of a job of one of these kinds."""
        if isinstance(job, JobHandle):
            return job.id
        return self._id(job, _noun(kinds, "job"), lambda: [self._jobs(lambda each: each.kind in kinds)])

    def dataset_id(self, dataset: Dataset | JobHandle | str) -> str:
        """The id of a stored dataset, which may be named by the job that has left it."""
        if isinstance(dataset, Dataset):
            return dataset.dataset_id
        found = dataset.id if isinstance(dataset, JobHandle) else self._dataset(dataset, frozenset(DatasetKind))
        if not found.startswith("job-"):
            return found
        job = self._session.run(self._session.gateway.get_job(found))
        if job.result is None or job.result.dataset_id is None:
            raise NotFoundError(f"{found} is {job.state} and has left no dataset")
        return job.result.dataset_id

    def model_id(self, model: Model | str) -> str:
        """The id of a stored model, which may be named by the job that has made it."""
        if isinstance(model, Model):
            return model.model_id
        found = self._model(model, ANY_MODEL)
        if not found.startswith("job-"):
            return found
        if "@" in found:
            raise NotFoundError(
                f"{found} is a checkpoint, which is no stored model: it can be trained on, and downloaded"
            )
        job = self._session.run(self._session.gateway.get_job(found))
        if job.result is None or job.result.model_id is None:
            raise NotFoundError(f"{found} is {job.state} and has left no model")
        return job.result.model_id

    def any_id(self, thing: str) -> str:
        """The id of a job, model or dataset; of a job and the model it has made, which share a name, the model's."""
        shelves = [self._jobs(lambda _: True), self._models(ANY_MODEL), self._datasets(frozenset(DatasetKind))]
        return self._id(thing, "job, model or dataset", lambda: shelves)

    def model(self, model: ModelLike, *, kinds: frozenset[str] = ANY_MODEL) -> ModelReference:
        """What a model argument refers to; text stands for a model of one of these kinds."""
        return model_reference(self._model(model, kinds) if isinstance(model, str) else model)

    def in_spec(self, kind: JobKind, spec: Mapping[str, Any]) -> dict[str, Any]:
        """A spec with ids in place of what stands for them.

        Raises:
            InvalidArgumentError: Names the field that refers to nothing, or to more than one thing.
        """

        def found(path: str, given: Any, need: Need) -> Any:
            try:
                if isinstance(given, Mapping):
                    return {name: self._part(name, value, need) for name, value in given.items()}
                return self._written(given, need) if isinstance(given, str) else given
            except (NotFoundError, InvalidArgumentError) as error:
                raise InvalidArgumentError.in_field(f"spec.{kind.value}.{path}", str(error)) from error

        return map_references(KINDS[kind].spec, spec, found)

    def _written(self, text: str, need: Need) -> str:
        """A whole reference that is given as text."""
        match need:
            case NeedsModel(kinds):
                return self._model(text, kinds)
            case NeedsDataset(kinds):
                return self._dataset(text, kinds)
            case NeedsJobs(kind):
                return self._source(text, f"{kind} job", lambda job: job.kind is kind)

    def _part(self, name: str, value: Any, need: Need) -> Any:
        """A part of a reference: `job_id`, `model_id` or `dataset_id`; others are no text."""
        if not isinstance(value, str):
            return value
        match name, need:
            case "job_id", NeedsModel():
                return self._source(value, "job", lambda job: KINDS[job.kind].leaves_model in need.kinds)
            case "job_id", NeedsDataset():
                return self._source(value, "job", lambda job: _leaves_dataset(job, need.kinds))
            case "model_id", NeedsModel():
                return self._id(value, _noun(need.kinds, "model"), lambda: [self._models(need.kinds)])
            case "dataset_id", NeedsDataset():
                return self._id(value, _noun(need.kinds, "dataset"), lambda: [self._datasets(need.kinds)])
        return value

    def _model(self, text: str, kinds: frozenset[str]) -> str:
        """An id of a model, or of a job whose model is meant, perhaps with a step."""

        def makes(job: Job) -> bool:
            return KINDS[job.kind].leaves_model in kinds

        def supplies(job: Job) -> bool:
            return makes(job) and job.state in _SUPPLIES

        checkpoint = _CHECKPOINT.fullmatch(text)
        if checkpoint is not None:
            job_id = self._id(checkpoint[1], "training job", lambda: [self._jobs(makes)])
            return f"{job_id}@{checkpoint[2]}"
        return self._id(text, _noun(kinds, "model"), lambda: [self._models(kinds), self._jobs(supplies)])

    def _dataset(self, text: str, kinds: frozenset[DatasetKind]) -> str:
        """An id of a dataset, or of a job whose dataset is meant."""

        def shelves() -> list[Iterator[_Found]]:
            found = [self._datasets(kinds)]
            if any(kind.leaves_dataset for kind in KINDS.values()):
                found.append(self._jobs(lambda job: _leaves_dataset(job, kinds) and job.state in _SUPPLIES))
            return found

        return self._id(text, _noun(kinds, "dataset"), shelves)

    def _source(self, text: str, noun: str, fits: Callable[[Job], bool]) -> str:
        """The id of a job whose output is used: one that has it, or may still have it."""
        return self._id(text, noun, lambda: [self._jobs(lambda job: fits(job) and job.state in _SUPPLIES)])

    def _id(self, text: str, noun: str, shelves: Callable[[], list[Iterator[_Found]]]) -> str:
        if not needs_lookup(text):
            return text
        last = _LAST.fullmatch(text)
        found = _newest(text, last[1], noun, shelves()) if last else _only(text, noun, list(chain(*shelves())))
        logger.info("%s is %s", text, found.id)
        return found.id

    # ---- what there is, each newest first

    def _jobs(self, fits: Callable[[Job], bool]) -> Iterator[_Found]:
        for job in self._session.each(self._session.gateway.list_jobs):
            method = (job.spec.get("method") or {}).get("name")
            words = (job.kind.value, *([method] if method else []))
            made = (job.result.model_id, job.result.dataset_id) if job.result else ()
            left, state = tuple(each for each in made if each), job.state.value
            yield _Found(job.job_id, job.display_name, words, job.create_time, fits(job), state=state, left=left)

    def _models(self, kinds: frozenset[str]) -> Iterator[_Found]:
        list_models = partial(self._session.gateway.list_models, on_unreadable=say_unreadable)
        for model in self._session.each(list_models):
            yield _Found(model.model_id, model.display_name, (model.kind,), model.create_time, fits=model.kind in kinds)

    def _datasets(self, kinds: frozenset[DatasetKind]) -> Iterator[_Found]:
        list_datasets = partial(self._session.gateway.list_datasets, on_unreadable=say_unreadable)
        for each in self._session.each(list_datasets):
            yield _Found(each.dataset_id, each.display_name, (each.kind.value,), each.create_time, each.kind in kinds)


def _newest(text: str, word: str | None, noun: str, shelves: Iterable[Iterator[_Found]]) -> _Found:
    """The newest that fits, and is of a kind or method that the word begins, if there is one."""

    def is_of(found: _Found, *, exactly: bool) -> bool:
        return word is None or any(kind == word or (not exactly and kind.startswith(word)) for kind in found.kinds)

    fitting = [[each for each in shelf if each.fits] for shelf in shelves]
    words = {kind for shelf in fitting for each in shelf for kind in each.kinds}
    for exactly in (True, False):
        newest = [first for shelf in fitting if (first := next((e for e in shelf if is_of(e, exactly=exactly)), None))]
        if newest:
            return max(newest, key=lambda each: each.create_time)
    of_word = f" of a kind or method {word!r}{did_you_mean(word, words) or ' yet'}" if word else " yet"
    raise NotFoundError(f"{text}: there is no {noun}{of_word}")


def _only(text: str, noun: str, known: Sequence[_Found]) -> _Found:
    """The one of that name, or else whose id begins so; what does not fit counts where nothing fits."""
    found = [each for each in known if each.name == text] or [each for each in known if each.is_meant_by(text)]
    fitting = [each for each in found if each.fits] or found
    ids = {each.id for each in fitting}
    # A job and the model or dataset it has left are one thing, and often have one name.
    fitting = [each for each in fitting if ids.isdisjoint(each.left)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise NotFoundError(f"there is no {noun} {text!r}{_advice(text, noun, known)}")
    listed = "".join(f"\n  {each}" for each in fitting[:_LISTED])
    more = f"\n  and {len(fitting) - _LISTED} more" if len(fitting) > _LISTED else ""
    raise InvalidArgumentError(
        f"{text!r} may be any of {len(fitting)}: give the id, or enough of it; @last is the newest{listed}{more}"
    )


def _advice(text: str, noun: str, known: Sequence[_Found]) -> str:
    """What may have been meant, or what may be given."""
    sort = next(word for word in ("job", "model", "dataset") if word in noun)
    listed = f"`madpo {sort} list` lists them"
    names = dict.fromkeys(each.name for each in known if each.name)
    if longer := [name for name in names if name.startswith(text)]:
        return f"; did you mean {' or '.join(longer[:3])}? {listed}"
    if (uploaded_as := source_name(text)) in names:  # the path of a file
        return f"; did you mean {uploaded_as}? {listed}"
    if meant := did_you_mean(text, [*names, "@last"]):
        return f"{meant} {listed}"
    if sort != "job" and Path(text).exists():
        return f"; {text} is on this machine: `madpo {sort} upload {text}` first, or give the name it has there"
    return f": give an id, its beginning (4 digits or more), a name, or @last; {listed}"


def _noun(kinds: frozenset[Any], sort: str) -> str:
    """`reward model`; `job` where all kinds will do."""
    words = {"model": ANY_MODEL, "dataset": frozenset(DatasetKind), "job": frozenset(JobKind)}
    return sort if kinds == words[sort] else f"{' or '.join(sorted(kinds))} {sort}"


def _leaves_dataset(job: Job, kinds: frozenset[DatasetKind]) -> bool:
    return bool(KINDS[job.kind].leaves_dataset & kinds)
