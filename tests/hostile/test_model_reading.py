"""Models that do harm when they are read: who asked is told why, and the process is replaced."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from madpo.data.tokenizer_process import TokenizerProcess
from madpo.data.unembedded import UnembeddedTokens
from madpo.errors import InvalidArgumentError
from madpo.types import Message
from madpo_reward.encoding import Text, encode
from tests.hostile.model_cases import ModelCase
from tests.hostile.scored_cases import scored_cases

CHAT = [Text("a pair", (Message("user", "a"),), (Message("assistant", "a" * 50),))]
PLAIN = [Text("a pair", "the film", "was good")]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Path:
    directory = tmp_path_factory.mktemp("models") / "good"
    make_toy_tokenizer().save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.mark.parametrize("case", scored_cases(), ids=lambda case: case.name)
def test_who_asks_for_a_hostile_model_is_told(case: ModelCase, good: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(good, tmp_path / "model"))
    case.harm(directory)
    process = TokenizerProcess(directory)
    encoding = partial(encode, max_tokens=128, unembedded=UnembeddedTokens(None, None))  # type: ignore[arg-type]

    with pytest.raises(InvalidArgumentError, match=case.reason):
        process.call(encoding, CHAT, cpu_s=2)
    if case.name.startswith("template"):
        assert process.call(encoding, PLAIN, cpu_s=5)[0].response

    process.close()
