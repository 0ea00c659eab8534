"""Every hostile model folder, sent to a real gateway: a typed refusal that says why, and nothing left behind."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForSequenceClassification

from madpo.errors import InvalidArgumentError
from tests.hostile.door import Door
from tests.hostile.model_cases import ModelCase, model_cases
from tests.integration.reward.service import llama_config
from tests.model_directories import save_directory

CASES = model_cases()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Path:
    tokenizer = make_toy_tokenizer()
    model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1))
    return save_directory(model, tokenizer, tmp_path_factory.mktemp("models") / "good")


def test_there_are_enough_cases_and_none_twice() -> None:
    assert len(CASES) >= 60
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_hostile_model_is_refused(door: Door, good: Path, case: ModelCase, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(good, tmp_path / "model"))
    case.harm(directory)

    with pytest.raises(InvalidArgumentError, match=case.reason):
        await door.client.upload_model(directory, display_name="hostile")

    assert door.left_behind() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_the_model_that_harm_is_done_to_is_taken(door: Door, good: Path) -> None:
    model, _ = await door.client.upload_model(good, display_name="good")

    assert model.kind == "reward"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["tokenization_x.py", "weights.pkl", "tokenizer/a.so"])
async def test_programs_beside_a_model_stay_behind(door: Door, good: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(good, tmp_path / "model"))
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"import os")

    model, _ = await door.client.upload_model(directory, display_name="good")

    assert {file.path for file in model.files} == {path.name for path in good.iterdir()}
