"""Calls of a chat endpoint over real HTTP: what is asked again, what is not, and what is never said."""

import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest
from pydantic import SecretStr

from madpo.errors import DeadlineExceededError, FailedPreconditionError, MadpoError, OverloadedError, UnavailableError
from madpo_evaluator.judging.endpoint import Endpoint, Reply
from madpo_evaluator.judging.judge import Judge
from madpo_evaluator.judging.question import Question
from tests.chat_endpoint import ChatEndpoint, chat_endpoint

KEY = "sk-thekeythatnobodymaysee0123456789"
QUESTION = Question("Say more.", "more and more", "more", "which is longer").messages()
LONGER_IS_BETTER = Reply("I count letters.\n[[A]]", 100, 10)


@pytest.fixture
def server() -> Iterator[ChatEndpoint]:
    with chat_endpoint() as endpoint:
        yield endpoint


def endpoint(server: ChatEndpoint, pauses: list[float] | None = None, **settings: Any) -> Endpoint:
    judge = Judge(url=server.url, model="big", **settings)
    return Endpoint("gpt", judge, SecretStr(KEY), wait=(pauses if pauses is not None else []).append)


def test_a_question_is_asked_as_the_protocol_has_it(server: ChatEndpoint) -> None:
    options = {"max_tokens": None, "max_completion_tokens": 64, "seed": 3}

    assert endpoint(server, options=options).ask(QUESTION) == LONGER_IS_BETTER

    assert server.seen == [
        {"model": "big", "messages": QUESTION, "temperature": 0, "max_completion_tokens": 64, "seed": 3}
    ]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, 408, "garbage", "no choices", "cut off", "hang up"])
def test_what_passes_is_asked_again(fault: Any, server: ChatEndpoint) -> None:
    server.faults.extend([fault, fault])
    pauses: list[float] = []

    assert endpoint(server, pauses).ask(QUESTION) == LONGER_IS_BETTER

    assert server.requests == 3
    # Twice as long each time, and up to half of it left to chance.
    assert 0.5 <= pauses[0] <= 1.0 <= pauses[1] <= 2.0


def test_an_endpoint_that_says_when_to_come_back_is_obeyed(server: ChatEndpoint) -> None:
    later = formatdate(time.time() + 40, usegmt=True)
    server.faults.extend([(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": later}, b"busy")])
    server.faults.append((429, {"Retry-After": "soon"}, b""))
    pauses: list[float] = []

    assert endpoint(server, pauses).ask(QUESTION) == LONGER_IS_BETTER

    assert 7.5 <= pauses[0] <= 8.0
    assert 10.0 < pauses[1] <= 42.0  # the clock went on meanwhile
    assert pauses[2] <= 4.0


def test_who_is_to_come_back_after_the_budget_gives_up_at_once_and_says_when(server: ChatEndpoint) -> None:
    server.faults.append((429, {"Retry-After": "3600"}, b"slow down"))

    with pytest.raises(OverloadedError, match=r"judge gpt \(big\) answers HTTP 429: slow down") as caught:
        endpoint(server).ask(QUESTION)

    assert caught.value.retry_after_s == 3600
    assert server.requests == 1


@pytest.mark.parametrize("fault", ["slow", "silent"])
def test_an_answer_has_a_deadline_from_the_first_to_the_last_byte(fault: str, server: ChatEndpoint) -> None:
    server.faults.append(fault)

    with pytest.raises(DeadlineExceededError, match=r"judge gpt \(big\) has not answered within 0.3 s"):
        endpoint(server, timeout_s=0.3, outage_s=0).ask(QUESTION)


def test_a_judge_that_is_not_there_is_named_with_its_address() -> None:
    with chat_endpoint() as gone:
        pass
    with pytest.raises(UnavailableError, match=rf"judge gpt \(big\) at {gone.url} cannot be reached"):
        endpoint(gone, outage_s=0).ask(QUESTION)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "HTTP 401.*set its key, MADPO_EVALUATOR_JUDGE_KEYS__GPT, and resume the job"),
        (403, "HTTP 403.*set its key"),
        (404, "HTTP 404.*look at url and model of the judge in MADPO_EVALUATOR_JUDGES"),
        ((302, {"Location": "http://127.0.0.1:1/elsewhere"}, b""), "HTTP 302.*redirects are not followed"),
        ((429, {}, b'{"error": {"code": "insufficient_quota"}}'), "no credit left"),
    ],
)
def test_what_does_not_pass_is_said_at_once(fault: Any, said: str, server: ChatEndpoint) -> None:
    server.faults.append(fault)

    with pytest.raises(FailedPreconditionError, match=said):
        endpoint(server).ask(QUESTION)

    assert server.requests == 1


def test_a_refused_question_is_no_error_of_the_others(server: ChatEndpoint) -> None:
    server.faults.append((400, {}, b'{"error": {"code": "context_length_exceeded"}}'))

    reply = endpoint(server).ask(QUESTION)

    assert reply == Reply("", refusal='HTTP 400: {"error": {"code": "context_length_exceeded"}}')


@pytest.mark.parametrize("status", [400, 401, 418, 500])
def test_a_key_that_the_endpoint_repeats_is_not_passed_on(
    status: int, server: ChatEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.extend([(status, {}, f"wrong key {KEY} and sk-{'z' * 30}".encode())] * 2)
    judge = endpoint(server, outage_s=0)

    try:
        said = judge.ask(QUESTION).refusal
    except MadpoError as error:
        said = repr(error)

    assert f"HTTP {status}: wrong key *** and ***" in said
    for text in (said, caplog.text, repr(judge.__dict__)):
        assert KEY not in text


def test_an_endless_answer_is_not_read_to_its_end(server: ChatEndpoint) -> None:
    server.faults.append((200, {}, b" " * (5 << 20)))

    with pytest.raises(UnavailableError, match="more than 4 MiB"):
        endpoint(server, outage_s=0).ask(QUESTION)
