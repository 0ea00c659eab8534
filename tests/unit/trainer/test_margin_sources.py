import asyncio
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from madpo.data.order import Schedule
from madpo.errors import (
    CorruptObjectError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    InvalidPairError,
    NonFiniteError,
    RevisionMismatchError,
    UnavailableError,
)
from madpo.jobs.methods import MarginParameters
from madpo.storage.local import LocalStore
from madpo.types import PreferencePair, ScoredPair
from madpo.worker.phase import Interrupted
from madpo_trainer.margins.journal import MarginJournal
from madpo_trainer.margins.lookahead import LookAhead
from madpo_trainer.margins.reading import longer_than
from madpo_trainer.margins.remote import RemoteMargins
from madpo_trainer.margins.source import DatasetMargins
from tests.damage import DAMAGES

MODEL = "model-" + "0" * 32
PAIRS = [PreferencePair(f"prompt {i}", f"good {i}", f"bad {i}", row=i + 1) for i in range(20)]
SCHEDULE = Schedule.plan(rows=20, batch_size=4, seed=0, epochs=3, max_steps=None)
MARGINS = {pair.pair_id: index / 10 - 1 for index, pair in enumerate(PAIRS)}


class Scorer:
    """A scorer that notes what it is asked and can be away or wrong."""

    def __init__(self, *, failures=0, margins=MARGINS, gate=None):
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.failures, self.margins, self.gate = failures, margins, gate

    async def score_pairs(self, model_id, pairs, *, revision=None):
        if self.gate is not None:
            await asyncio.to_thread(self.gate.wait)
        if self.failures:
            self.failures -= 1
            await asyncio.sleep(0.02)
            raise UnavailableError("no scorer")
        self.sizes.append(len(pairs))
        self.asked += [pair.pair_id for pair in pairs]
        return [ScoredPair(pair.pair_id, self.margins[pair.pair_id], 0.0, 1, 1) for pair in pairs]


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


RECORD = '{"pair_id": "p", "reward_margin": %s, "revision": "r1"}'


def remote(store, scorer, *, attempt=1, revision="r1", interrupted=lambda: False, **parameters):
    return RemoteMargins(
        PAIRS,
        SCHEDULE,
        connect=lambda: scorer,
        model_id=MODEL,
        revision=revision,
        journal=MarginJournal(store, job_id="job-" + "0" * 32, attempt=attempt),
        parameters=MarginParameters(reward_model={"model_id": MODEL}, **parameters),
        interrupted=interrupted,
    )


def take_all(source, first=0):
    source.start(first)
    try:
        return [source.take(step) for step in range(first, SCHEDULE.total_steps)]
    finally:
        source.close()


def expected(step):
    return [MARGINS[PAIRS[index].pair_id] for index in SCHEDULE.batch(step)]


def test_every_step_gets_its_margins_and_no_pair_is_asked_twice(store):
    scorer = Scorer()
    source = remote(store, scorer)

    taken = take_all(source)

    assert taken == [expected(step) for step in range(SCHEDULE.total_steps)]
    assert sorted(scorer.asked) == sorted(MARGINS)
    assert source.summary()["scored_live"] == len(PAIRS)


def test_a_second_attempt_takes_journaled_margins_and_asks_only_for_the_rest(store):
    first = Scorer()
    source = remote(store, first, lookahead_batches=1)
    source.start(0)
    source.take(0)
    source.take(1)
    source.close()

    second = Scorer(margins=dict.fromkeys(MARGINS, 99.0))
    resumed = remote(store, second, attempt=2)
    taken = take_all(resumed)

    assert taken[:2] == [expected(0), expected(1)]
    assert not set(first.asked) & set(second.asked)
    assert resumed.summary()["from_journal"] == len(first.asked)


def cut_scorer(cut):
    class Cut(Scorer):
        async def score_pairs(self, model_id, pairs, *, revision=None):
            scores = await super().score_pairs(model_id, pairs, revision=revision)
            return [replace(each, rejected_truncated=each.pair_id in cut) for each in scores]

    return Cut(margins=MARGINS | dict.fromkeys(cut[:1], 0.0))


def test_pairs_that_the_reward_model_read_in_part_are_counted_in_every_attempt(store):
    cut = [PAIRS[3].pair_id, PAIRS[8].pair_id]
    first = remote(store, cut_scorer(cut))
    take_all(first)

    again = remote(store, cut_scorer([]), attempt=2)

    for source in (first, again):
        summary = source.summary()
        assert (summary["truncated"], summary["truncated_alike"]) == (2, 1)
        assert [pair.row for pair in PAIRS if source.was_truncated(pair.pair_id)] == [4, 9]


def test_a_job_that_refuses_long_rows_refuses_what_the_reward_model_reads_in_part(store):
    source = remote(store, cut_scorer([PAIRS[3].pair_id]))
    source._overlong = "error"

    with pytest.raises(InvalidPairError, match=r"only a part of 1 pair; rows \[4\] .*longer context"):
        take_all(source)


def test_pairs_longer_than_the_reward_model_reads_are_found_before_any_is_scored(make_toy_tokenizer, tmp_path):
    make_toy_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    pairs = [PreferencePair("the film", "good " * words, "bad", row=words) for words in (5, 200, 300, 301)]
    phase = Mock()

    # BOS, two words, the response's words and EOS.
    assert longer_than(304, pairs, tmp_path, phase=phase) == [3]
    assert longer_than(303, pairs, tmp_path, phase=phase) == [2, 3]
    assert longer_than(10_000, pairs, tmp_path / "nowhere", phase=phase) == []


@pytest.mark.parametrize("damage", [*DAMAGES, None])
def test_margins_that_were_damaged_are_asked_for_again_and_come_back_the_same(store, damage):
    taken = take_all(remote(store, Scorer()))
    key = next(info.key for info in store.list("jobs/") if "/margins/" in info.key)
    store.delete(key) if damage is None else store.put(key, damage(store.get(key)))

    second = Scorer()
    assert take_all(remote(store, second, attempt=2)) == taken
    assert 0 < len(second.asked) < len(MARGINS)


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_an_outage_may_have_cost_margins_a_damaged_journal_is_refused_by_name(store, damage):
    take_all(remote(store, Scorer()))
    key = next(info.key for info in store.list("jobs/") if "/margins/" in info.key)
    store.put(key, damage(store.get(key)))

    with pytest.raises(CorruptObjectError, match=key):
        remote(store, Scorer(), attempt=2, outage_policy="neutral")


@pytest.mark.parametrize("text", ["x", '{"pair_id": "p", "revision": "r1"}', RECORD % "NaN", RECORD % "1e999"])
def test_a_journal_of_version_0_1_0_has_no_digest_and_must_at_least_make_sense(store, text):
    key = "jobs/job-" + "0" * 32 + "/margins/a00001-000000.jsonl"
    journal = MarginJournal(store, job_id="job-" + "0" * 32, attempt=2)
    store.put(key, (RECORD % "1.25").encode())
    assert journal.load("r1") == ({"p": 1.25}, {"p"})

    store.put(key, text.encode())
    with pytest.raises(CorruptObjectError, match=key):
        journal.load("r1")


def test_a_journal_of_another_revision_is_refused_naming_both(store):
    take_all(remote(store, Scorer(), revision="r1"))

    with pytest.raises(RevisionMismatchError, match=r"r1.*r2"):
        remote(store, Scorer(), attempt=2, revision="r2")


def test_an_outage_is_waited_out_by_default(store):
    scorer = Scorer(failures=2)

    assert take_all(remote(store, scorer))[0] == expected(0)


def test_an_outage_beyond_the_budget_fails_and_says_what_to_do(store):
    source = remote(store, Scorer(failures=10**6), outage_budget_s=0.01)

    with pytest.raises(FailedPreconditionError, match="start a reward service"):
        take_all(source)


def test_with_policy_fail_the_first_outage_ends_the_run(store):
    with pytest.raises(UnavailableError):
        take_all(remote(store, Scorer(failures=1), outage_policy="fail"))


def test_with_policy_neutral_pairs_go_on_without_a_margin_and_are_counted(store):
    source = remote(store, Scorer(failures=1), outage_policy="neutral")

    taken = take_all(source)

    used = dict(entry for step, margins in enumerate(taken) for entry in zip(ids(step), margins, strict=True))
    assert sum(margin is None for margin in used.values()) == 4
    assert source.summary()["neutral"] == 4
    # The journal remembers: a resumed run trains on the same numbers.
    resumed = take_all(remote(store, Scorer(), attempt=2, outage_policy="neutral"))
    assert resumed == taken


def test_a_non_finite_margin_is_refused_with_its_pair_id(store):
    bad = PAIRS[3].pair_id

    with pytest.raises(NonFiniteError) as caught:
        take_all(remote(store, Scorer(margins={**MARGINS, bad: float("nan")})))

    assert caught.value.pair_ids == (bad,)


def test_the_look_ahead_is_bounded(store):
    scorer = Scorer()
    source = remote(store, scorer, lookahead_batches=2)
    source.start(0)
    source.take(0)
    source.take(1)
    source.close()

    assert len(scorer.asked) <= 4 * (1 + 2)


def test_requests_grow_with_the_steps_left_until_they_are_needed(store):
    scorer = Scorer()
    source = remote(store, scorer)
    source.start(0)
    while len(scorer.asked) < len(PAIRS):
        time.sleep(0.01)
    source.close()

    assert scorer.sizes == [4, 4, 8, 4]


def test_a_second_epoch_asks_nothing(store):
    scorer = Scorer()
    source = remote(store, scorer, lookahead_batches=1)
    source.start(0)
    for step in range(SCHEDULE.total_steps):
        source.take(step)
        if SCHEDULE.epoch(step) == 0:
            requests = len(scorer.sizes)
    source.close()

    assert len(scorer.sizes) == requests == 5


def test_the_look_ahead_follows_the_latency_within_its_bound():
    ahead = LookAhead(bound=20, message_steps=4)
    assert (ahead.least, ahead.most) == (20, 20)

    ahead.observe_latency(0.05)
    ahead.observe_step(0.1)
    assert (ahead.least, ahead.most) == (2, 6)

    ahead.observe_latency(0.5)
    assert (ahead.least, ahead.most) == (6, 12)

    for _ in range(40):
        ahead.observe_latency(0.05)
    assert (ahead.least, ahead.most) == (2, 6)

    ahead.observe_latency(60.0)
    assert (ahead.least, ahead.most) == (20, 20)


def test_a_stop_request_ends_the_wait_for_a_margin(store):
    gate = threading.Event()
    source = remote(store, Scorer(gate=gate), interrupted=lambda: True)
    source.start(0)

    with pytest.raises(Interrupted):
        source.take(0)
    gate.set()
    source.close()


HELD_OUT = [PreferencePair(f"unseen {i}", "yes", "no", row=i + 1) for i in range(600)]
UNSEEN = {pair.pair_id: float(index) for index, pair in enumerate(HELD_OUT)}


def test_margins_of_held_out_pairs_are_journaled_and_not_counted_among_those_of_training(store):
    scorer = Scorer(margins=MARGINS | UNSEEN)
    source = remote(store, scorer)

    assert source.of(HELD_OUT) == list(UNSEEN.values())
    assert source.summary()["requested"] == source.summary()["scored_live"] == 0
    assert take_all(source) == [expected(step) for step in range(SCHEDULE.total_steps)]
    assert source.summary()["requested"] == source.summary()["scored_live"] == len(PAIRS)

    silent = Scorer(margins={})
    again = remote(store, silent, attempt=2)
    assert again.of(HELD_OUT) == list(UNSEEN.values())
    assert again.summary()["from_journal"] == len(PAIRS)
    assert silent.asked == []


def test_margins_of_all_training_pairs_are_not_asked_for_again_in_the_steps(store):
    scorer = Scorer()
    source = remote(store, scorer)

    assert source.of(PAIRS) == list(MARGINS.values())
    take_all(source)

    assert sorted(scorer.asked) == sorted(MARGINS)


def test_a_stop_request_ends_the_wait_for_margins_before_the_first_step(store):
    gate = threading.Event()
    source = remote(store, Scorer(gate=gate), interrupted=lambda: True)
    threading.Timer(2, gate.set).start()  # a thread that is asked cannot be cancelled

    with pytest.raises(Interrupted):
        source.of(PAIRS)


def test_margins_before_the_first_step_follow_the_outage_policy(store):
    assert remote(store, Scorer(failures=1), outage_policy="neutral").of(PAIRS) == [None] * len(PAIRS)
    with pytest.raises(UnavailableError):
        remote(store, Scorer(failures=1, margins=UNSEEN), attempt=2, outage_policy="fail").of(HELD_OUT)


def test_dataset_margins_need_one_in_every_row():
    with pytest.raises(InvalidArgumentError, match=r"it is missing in 20 rows, the first row 1"):
        DatasetMargins(np.full(20, np.nan), np.arange(1, 21), SCHEDULE)
    some = DatasetMargins(np.arange(20.0), np.arange(1, 21), SCHEDULE)
    assert some.take(1) == [float(row) for row in SCHEDULE.batch(1)]


def ids(step):
    return [PAIRS[index].pair_id for index in SCHEDULE.batch(step)]


class AbsentStore(LocalStore):
    """A store that is away for its first writes."""

    failures = 0

    def put(self, key, data):
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no store")
        return super().put(key, data)


@pytest.mark.timeout(30)
def test_a_failure_reaches_the_step_that_waits_while_nothing_is_due(store):
    """The look-ahead of one batch has nothing more to ask until the next step, which waits for the failed request."""
    scorer = Scorer()
    source = remote(store, scorer, outage_policy="fail", lookahead_batches=1)
    source.start(0)
    source.take(0)
    scorer.failures = 10**6

    with pytest.raises(UnavailableError, match="no scorer"):
        [source.take(step) for step in range(1, SCHEDULE.total_steps)]
    source.close()
    assert not source._thread.is_alive()


@pytest.mark.timeout(30)
def test_a_failure_reaches_the_step_that_waits_though_a_write_of_the_journal_hangs(tmp_path):
    gate = threading.Event()

    class HangingStore(LocalStore):
        def put(self, key, data):
            gate.wait()
            return super().put(key, data)

    pairs = iter(range(10**6))

    class SecondFails(Scorer):
        async def score_pairs(self, model_id, pairs_, *, revision=None):
            if next(pairs):
                raise UnavailableError("no scorer")
            return await super().score_pairs(model_id, pairs_, revision=revision)

    source = remote(HangingStore(tmp_path), SecondFails(), outage_policy="fail")
    source.start(0)

    with pytest.raises(UnavailableError, match="no scorer"):
        source.take(0)
    gate.set()
    source.close()


@pytest.mark.timeout(30)
def test_margins_wait_for_a_store_that_is_away_whatever_the_outage_policy(tmp_path):
    store = AbsentStore(tmp_path)
    store.failures = 2

    taken = take_all(remote(store, Scorer(), outage_policy="fail", lookahead_batches=1))

    assert taken == [expected(step) for step in range(SCHEDULE.total_steps)]
    again = remote(store, Scorer(margins={}), attempt=2)
    assert again.summary()["from_journal"] == len(PAIRS)


@pytest.mark.timeout(30)
def test_a_store_that_stays_away_ends_the_run_as_an_outage(tmp_path):
    store = AbsentStore(tmp_path)
    store.failures = 10**6

    with pytest.raises(UnavailableError, match="no store"):  # which the supervisor waits for
        take_all(remote(store, Scorer(), outage_budget_s=0.01, lookahead_batches=1))


@pytest.mark.timeout(30)
def test_a_look_ahead_that_ended_without_a_word_is_noticed(store):
    source = remote(store, Scorer())
    source._run = lambda: None
    source._thread = threading.Thread(target=source._run)
    source.start(0)

    with pytest.raises(InternalError, match="step 1"):
        source.take(0)


@pytest.mark.timeout(30)
def test_a_stop_request_is_noticed_though_answers_keep_coming(store, monkeypatch):
    monkeypatch.setattr("madpo_trainer.margins.remote._PAIRS_PER_REQUEST", 1)
    asked = []

    class Steady(Scorer):
        async def score_pairs(self, model_id, pairs, *, revision=None):
            await asyncio.sleep(0.05)
            asked.extend(pairs)
            return await super().score_pairs(model_id, pairs, revision=revision)

    with pytest.raises(Interrupted):
        remote(store, Steady(margins=UNSEEN), interrupted=lambda: True).of(HELD_OUT)
    assert len(asked) < len(HELD_OUT)


@pytest.mark.timeout(30)
def test_closing_ends_requests_on_their_way(store):
    class Never(Scorer):
        async def score_pairs(self, model_id, pairs, *, revision=None):
            await asyncio.sleep(600)

    source = remote(store, Never())
    source.start(0)
    time.sleep(0.2)
    source.close()

    assert not source._thread.is_alive()
