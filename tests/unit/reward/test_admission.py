"""The door of the scorer, by a clock that stands still: who is let in, who is told to come again, and when."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from prometheus_client import CollectorRegistry

from madpo.errors import InvalidArgumentError, OverloadedError
from madpo_reward.admission import Admission, Ticket
from madpo_reward.metrics import RewardMetrics

GOOD, OTHER = "model-1", "model-2"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> RewardMetrics:
    return RewardMetrics(CollectorRegistry())


@pytest.fixture
def admission(metrics: RewardMetrics, clock: Clock) -> Admission:
    return Admission(100, max_bytes=1000, max_queue_s=0.5, gauge=metrics.queue_tokens, clock=clock)


def inside(metrics: RewardMetrics) -> float:
    return next(iter(metrics.queue_tokens.collect())).samples[0].value


@contextmanager
def working(
    admission: Admission, tokens: int, *, time_left_s: float | None = None, model_id: str = GOOD
) -> Iterator[Ticket]:
    with admission.admit(model_id, tokens, time_left_s=time_left_s) as ticket, ticket.work():
        yield ticket


def measure(admission: Admission, clock: Clock, *, tokens_per_s: int) -> None:
    """Let requests be answered at this rate."""
    for _ in range(20):
        with working(admission, tokens_per_s // 2):
            clock.now += 0.5


def refusal(
    admission: Admission,
    tokens: int,
    *,
    size_bytes: int = 0,
    time_left_s: float | None = None,
    model_id: str = GOOD,
) -> OverloadedError:
    with (
        pytest.raises(OverloadedError) as refused,
        admission.admit(model_id, tokens, size_bytes=size_bytes, time_left_s=time_left_s),
    ):
        pass
    return refused.value


def test_a_full_queue_refuses_at_once_with_a_hint_and_frees_what_is_answered(
    admission: Admission, metrics: RewardMetrics, clock: Clock
) -> None:
    measure(admission, clock, tokens_per_s=100)
    with admission.admit(GOOD, 60):
        refused = refusal(admission, 60)
        assert "60 of at most 100" in str(refused)
        with admission.admit(GOOD, 40):
            assert inside(metrics) == 100

    assert refused.retry_after_s == pytest.approx(20 / 100)
    assert inside(metrics) == 0


def test_a_request_larger_than_the_whole_queue_gets_no_hint(admission: Admission) -> None:
    for refused in (refusal(admission, 101), refusal(admission, 1, size_bytes=1001)):
        assert "send fewer pairs" in str(refused)
        assert refused.retry_after_s is None


def test_the_real_token_count_replaces_the_guess(admission: Admission, metrics: RewardMetrics) -> None:
    with admission.admit(GOOD, 10) as ticket, admission.admit(GOOD, 50):
        ticket.resize(50)
        assert inside(metrics) == 100
        with pytest.raises(OverloadedError):
            ticket.resize(51)
        ticket.resize(5)
        assert inside(metrics) == 55

    assert inside(metrics) == 0


def test_bytes_are_bounded_whatever_the_tokens(admission: Admission) -> None:
    with admission.admit(GOOD, 1, size_bytes=600):
        assert refusal(admission, 1, size_bytes=401).retry_after_s is not None
        with admission.admit(GOOD, 1, size_bytes=400):
            pass
    with admission.admit(GOOD, 1, size_bytes=1000):
        pass


def test_the_queue_is_bounded_in_seconds_of_work(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=40)

    with working(admission, 10), working(admission, 10), working(admission, 10):
        refused = refusal(admission, 1)

        assert "0.8 s of work, at most 0.5 s" in str(refused)
        assert refused.retry_after_s == pytest.approx(0.25)
    with working(admission, 1):
        pass


def test_two_requests_are_let_in_however_long_they_take(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=2)

    with working(admission, 40), working(admission, 40):
        assert refusal(admission, 1).retry_after_s == 5.0


def test_before_anything_is_measured_only_tokens_and_bytes_bound_the_queue(admission: Admission) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(working(admission, 1))


def test_who_cannot_be_answered_in_time_is_refused_before_any_work(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=100)

    with working(admission, 30):
        refused = refusal(admission, 20, time_left_s=0.4)
        assert "would take 0.5 s" in str(refused)
        assert refused.retry_after_s is not None
        with admission.admit(GOOD, 20, time_left_s=0.6):
            pass
    with working(admission, 20, time_left_s=0.1):  # alone: the estimate may be wrong, and nobody else waits
        pass


def test_a_crowd_is_told_to_come_one_after_the_other(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=100)

    with working(admission, 50), working(admission, 50):
        hints = [refusal(admission, 20).retry_after_s for _ in range(4)]
        clock.now += 0.2
        later = refusal(admission, 20).retry_after_s
        longest = [refusal(admission, 100).retry_after_s for _ in range(10)][-1]

    assert hints == pytest.approx([0.5, 0.7, 0.9, 1.1])
    assert later == pytest.approx(1.1)
    assert longest == 5.0


def test_what_waits_for_its_model_keeps_nobody_else_out(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=10)

    with admission.admit(GOOD, 30), admission.admit(GOOD, 30):
        clock.now += 60
        with working(admission, 5):
            clock.now += 0.5
        with working(admission, 5), working(admission, 5):
            pass


def test_the_rate_is_what_was_answered_and_not_what_was_given_up(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=20)
    for _ in range(20):
        with suppress(TimeoutError), working(admission, 100):
            clock.now += 0.5
            raise TimeoutError
        with working(admission, 5):
            clock.now += 0.5

    with working(admission, 2), working(admission, 2):  # 5 tokens a second: 0.8 s
        assert "0.8 s of work" in str(refusal(admission, 1))


def test_work_that_fails_by_its_own_fault_says_nothing_about_others(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=100)
    for _ in range(3):
        with suppress(InvalidArgumentError), working(admission, 1):
            clock.now += 20
            raise InvalidArgumentError("a text that no end comes to")
    with working(admission, 30):
        clock.now += 0.3

    with working(admission, 30):
        with admission.admit(GOOD, 50, time_left_s=1.0):  # 0.3 s of work before it, and 0.5 s of its own
            pass
        assert "would take 0.8 s" in str(refusal(admission, 50, time_left_s=0.7))


def test_a_model_that_hangs_keeps_nobody_from_another(admission: Admission, clock: Clock) -> None:
    measure(admission, clock, tokens_per_s=100)
    for _ in range(3):
        with suppress(TimeoutError), working(admission, 40, model_id=OTHER):
            clock.now += 60
            raise TimeoutError
    with working(admission, 1, model_id=OTHER):
        clock.now += 1

    with working(admission, 20, model_id=OTHER), working(admission, 20, model_id=OTHER):
        assert "s of work" in str(refusal(admission, 1, model_id=OTHER))
        with working(admission, 10, time_left_s=0.2), working(admission, 10, time_left_s=0.3):
            pass
