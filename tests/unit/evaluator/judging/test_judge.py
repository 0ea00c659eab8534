"""Judges as operators set them up."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from madpo.config import load_settings
from madpo.errors import InvalidArgumentError
from madpo_evaluator.judging.judge import Judge
from madpo_evaluator.settings import EvaluatorSettings

KEY = "a-key-of-a-judge"
NEEDED = {"STORE_URL": "file:///tmp/x", "REDIS_URL": "redis://h:1/0", "WORKSPACE": "/tmp/x"}
JUDGES = '{"gpt": {"url": "https://judge.example/v1/", "model": "big"}}'


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def load(**variables: str) -> EvaluatorSettings:
        for name, value in (NEEDED | variables).items():
            monkeypatch.setenv(f"MADPO_EVALUATOR_{name}", value)
        return load_settings(EvaluatorSettings)

    monkeypatch.setenv("MADPO_SECRETS_DIR", str(tmp_path))
    return load


def test_a_judge_and_its_key_come_from_the_environment_and_the_key_is_not_shown(settings: Any) -> None:
    found = settings(JUDGES=JUDGES, JUDGE_KEYS__GPT=KEY)

    assert found.judges["gpt"].url == "https://judge.example/v1"
    assert found.judge_keys["gpt"].get_secret_value() == KEY
    assert found.resolved()["judge_keys"] == {"gpt": "**********"}
    assert KEY not in f"{found!r} {found.resolved()}"


def test_keys_may_stand_in_a_secret_file(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "madpo_evaluator_judge_keys").write_text(f'{{"gpt": "{KEY}"}}')

    assert settings(JUDGES=JUDGES).judge_keys["gpt"].get_secret_value() == KEY


def test_a_key_of_no_judge_is_refused_without_being_shown(settings: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no judge gtp; judges: gpt") as caught:
        settings(JUDGES=JUDGES, JUDGE_KEYS__GTP=KEY)
    assert KEY not in str(caught.value)


def test_a_judge_has_a_plain_name(settings: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="should match pattern"):
        settings(JUDGES=JUDGES.replace("gpt", "../gpt"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "file:///etc/passwd"}, "must be https://host/path or http://host/path"),
        ({"url": "https://"}, "must be https"),
        ({"url": "https://me:secret@h/v1"}, "give the key in judge_keys"),
        ({"url": "https://h/v1?key=1"}, "give the key in judge_keys"),
        ({"url": "http://judge.example/v1"}, "anybody on the way can read"),
        ({"prompt_price": 1.0}, "prompt_price and completion_price come together"),
    ],
)
def test_a_wrong_judge_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Judge.model_validate({"url": "https://h/v1", "model": "m"} | wrong)


def test_plain_http_is_for_this_host_and_for_those_who_say_so() -> None:
    assert Judge(url="http://127.0.0.1:8000/v1", model="m")
    assert Judge(url="http://vllm:8000/v1", model="m", allow_plaintext=True)


def test_what_tokens_cost() -> None:
    judge = Judge(url="https://h/v1", model="m", prompt_price=2.5, completion_price=10.0)

    assert judge.cost(1_000_000, 200_000) == pytest.approx(4.5)
    assert Judge(url="https://h/v1", model="m").cost(1, 1) is None
