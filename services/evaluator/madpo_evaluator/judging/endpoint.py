"""Calls of a chat endpoint that speaks OpenAI's protocol, which may be slow, busy, away or confused."""

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import urllib3
from pydantic import SecretStr
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError
from urllib3.util.retry import Retry

from madpo.errors import DeadlineExceededError, FailedPreconditionError, MadpoError, OverloadedError, UnavailableError
from madpo.worker.credentials import without_credentials
from madpo_evaluator.judging.judge import Judge

logger = logging.getLogger(__name__)

_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 60.0
_CONNECT_S = 10.0
_MAX_BYTES = 4 << 20
_EXCERPT = 200
_COUNTED = ("prompt", "completion")
_REFUSED = (400, 413, 422)
"""The question is refused, such as one that is longer than the judge can read; others may not be."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a question."""

    text: str
    """Empty where the endpoint refused the question, or the model said nothing."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refusal: str = ""
    """Why the endpoint refused the question."""


class Endpoint:
    """One judge's endpoint. Threads may share it.

    Args:
        name: Of the judge, for messages.
        judge: Where it is, and how it is asked.
        key: What it wants to be shown.
        wait: Waits so many seconds; may raise to end the asking.
    """

    def __init__(self, name: str, judge: Judge, key: SecretStr | None, *, wait: Callable[[float], None]) -> None:
        self._what, self._judge, self._key, self._wait = f"judge {name} ({judge.model})", judge, key, wait
        self._name = name
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=judge.concurrency, ca_certs=None if judge.ca is None else str(judge.ca)
        )

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Ask until there is an answer, at most as long as the judge may be away.

        Raises:
            UnavailableError, OverloadedError, DeadlineExceededError: There was none in that time.
            FailedPreconditionError: The endpoint will not answer this evaluator: a wrong key, model or address.
        """
        give_up: float | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return self._ask_once(messages)
            except (UnavailableError, OverloadedError, DeadlineExceededError) as error:
                give_up = give_up or time.monotonic() + self._judge.outage_s
                told_s = getattr(error, "retry_after_s", None)
                # Whoever is told when to come back comes later, not sooner, and not all at once.
                pause_s = (told_s or 0.0) + delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                if time.monotonic() + pause_s >= give_up:
                    raise
                logger.warning("waiting for a judge", extra={"judge": self._name, "error": str(error)})
                self._wait(pause_s)
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def close(self) -> None:
        """End its connections."""
        self._pool.clear()

    def _ask_once(self, messages: list[dict[str, str]]) -> Reply:
        status, headers, data = self._post(json.dumps(self._judge.body(messages)).encode())
        if status == 200:
            return self._read(data)
        if status in _REFUSED:
            return Reply("", refusal=f"HTTP {status}: {self._excerpt(data)}")
        raise self._error(status, headers, data)

    def _post(self, body: bytes) -> tuple[int, urllib3.HTTPHeaderDict, bytes]:
        deadline = time.monotonic() + self._judge.timeout_s
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        try:
            response = self._pool.request(
                "POST",
                f"{self._judge.url}/chat/completions",
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=min(_CONNECT_S, self._judge.timeout_s), total=self._judge.timeout_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                data = self._receive(response, deadline)
                response.drain_conn()
            finally:
                response.release_conn()
        except MadpoError:  # some are OSErrors too
            raise
        except ReadTimeoutError as error:
            raise self._too_slow() from error
        except (HTTPError, OSError) as error:
            reason = self._without_key(f"{type(error).__name__}: {error}")
            raise UnavailableError(f"{self._what} at {self._judge.url} cannot be reached: {reason}") from None
        return response.status, response.headers, data

    def _receive(self, response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
        """The body, however slowly it comes. A connection that is given up is closed, not used again."""
        data = bytearray()
        while part := response.read1(1 << 16):
            data += part
            if len(data) > _MAX_BYTES:
                response.close()
                raise UnavailableError(f"{self._what} answers with more than {_MAX_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                response.close()
                raise self._too_slow()
        return bytes(data)

    def _read(self, data: bytes) -> Reply:
        try:
            answer = json.loads(data)
            text = answer["choices"][0]["message"].get("content")
            usage = answer.get("usage") or {}
            prompt_tokens, completion_tokens = (max(0, int(usage.get(f"{of}_tokens") or 0)) for of in _COUNTED)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise UnavailableError(
                f"{self._what} does not answer as a chat endpoint does, with choices[0].message.content "
                f"({type(error).__name__}): {self._excerpt(data)}"
            ) from None
        return Reply(text if isinstance(text, str) else "", prompt_tokens, completion_tokens)

    def _error(self, status: int, headers: urllib3.HTTPHeaderDict, data: bytes) -> MadpoError:
        said = f"{self._what} answers HTTP {status}: {self._excerpt(data)}"
        if status in (401, 403):
            return FailedPreconditionError(
                f"{said} (set its key, MADPO_EVALUATOR_JUDGE_KEYS__{self._name.upper()}, and resume the job)"
            )
        if status == 429 and b"insufficient_quota" in data:
            return FailedPreconditionError(f"{said} (its account has no credit left: add some, and resume the job)")
        if status == 429:
            return OverloadedError(said, retry_after_s=_retry_after_s(headers))
        if status in (408, 409, 425) or status >= 500:
            after_s = _retry_after_s(headers)
            return UnavailableError(said) if after_s is None else OverloadedError(said, retry_after_s=after_s)
        return FailedPreconditionError(
            f"{said} (look at url and model of the judge in MADPO_EVALUATOR_JUDGES; redirects are not followed)"
        )

    def _too_slow(self) -> DeadlineExceededError:
        return DeadlineExceededError(f"{self._what} has not answered within {self._judge.timeout_s:g} s")

    def _excerpt(self, data: bytes) -> str:
        text = " ".join(self._without_key(data[: 16 * _EXCERPT].decode("utf-8", "replace")).split())
        return without_credentials(text[:_EXCERPT]) or "nothing"

    def _without_key(self, text: str) -> str:
        key = self._key.get_secret_value() if self._key is not None else ""
        return text.replace(key, "***") if key else text


def _retry_after_s(headers: urllib3.HTTPHeaderDict) -> float | None:
    """Seconds until the endpoint wants to be asked again, from seconds or a date; None where it does not say."""
    given = headers.get("Retry-After")
    try:
        return None if given is None else max(0.0, Retry().parse_retry_after(given))
    except (InvalidHeader, ValueError, OverflowError):
        return None
