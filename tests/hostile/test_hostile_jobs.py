"""Models that do harm when they are read, in trainings, evaluations and checks: a typed reason, and nothing hangs.

The limits are lowered, so that it does not take long.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from madpo.data import encoding, limited
from madpo.data.check.findings import Findings
from madpo.data.check.tokens import TokenCheck
from madpo.data.encode import encode_rows
from madpo.data.encoding import RowEncoder
from madpo.data.limited import load_limited, process_of
from madpo.data.tokenize import encode_prompt, encode_response
from madpo.data.tokenizer_process import Limits
from madpo.data.turn_end import turn_end_id
from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.jobs.evaluation import SamplingParameters
from madpo.models.load import load_reward_model
from madpo.sampling.prompts import encode_prompts
from madpo.sampling.transformers import TransformersEngine
from madpo.types import Message, PreferencePair, PromptOnly
from tests.hostile import endings
from tests.integration.reward.service import llama_config
from tests.model_directories import save_directory

USER, GOOD, BAD = Message("user", "the film"), Message("assistant", "was good ."), Message("assistant", "was bad")
PAIR = PreferencePair((USER,), (GOOD,), (BAD,), row=1)
BEYOND = "went beyond [0-9]+ s of processor time"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "LIMITS", Limits(text_cpu_s=1, row_cpu_s=0, wall_per_cpu=100))


@pytest.fixture
def hostile(tmp_path: Path, make_toy_tokenizer: Callable[..., Any]) -> Path:
    """A reward model whose template never ends."""
    tokenizer = make_toy_tokenizer(template=LOOP)
    model = LlamaForSequenceClassification(llama_config(tokenizer, num_labels=1))
    return save_directory(model, tokenizer, tmp_path / "hostile")


def ways(tokenizer: Any, directory: Path) -> Iterator[Callable[[], object]]:
    """What jobs do with a tokenizer."""
    yield lambda: list(RowEncoder(directory, tokenizer).encode([PAIR]))
    yield lambda: encode_rows(tokenizer, [PAIR])
    yield lambda: encode_prompt(tokenizer, (USER,))
    yield lambda: encode_response(tokenizer, (USER,), (GOOD,))
    yield lambda: turn_end_id(tokenizer)
    yield lambda: load_reward_model(directory)


@pytest.mark.promise("H6")
def test_a_template_that_never_ends_is_the_reason_of_whatever_renders_it(hostile: Path) -> None:
    tokenizer = load_limited(hostile)

    for way in ways(tokenizer, hostile):
        with pytest.raises(InvalidArgumentError, match=BEYOND):
            way()


def test_a_check_of_rows_tells_it(hostile: Path) -> None:
    check = TokenCheck(hostile, Findings(), model="hostile")

    with pytest.raises(InvalidArgumentError, match=BEYOND):
        list(check.watch([PAIR]))


def test_an_evaluation_tells_it(hostile: Path, make_toy_tokenizer: Callable[..., Any]) -> None:
    tokenizer = load_limited(hostile)
    model = LlamaForCausalLM(llama_config(tokenizer)).eval()
    engine = TransformersEngine(model, tokenizer, rows=2)

    with pytest.raises(InvalidArgumentError, match=BEYOND):
        encode_prompts(tokenizer, [PromptOnly((USER,))], limit=None, max_new_tokens=2)
    with pytest.raises(InvalidArgumentError, match=BEYOND):
        next(engine.sample([[1, 2]], SamplingParameters(max_new_tokens=2), temperature=0.0))


def test_other_processes_of_a_large_dataset_tell_it(
    tmp_path: Path, make_toy_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template never ends for a row far behind the first."""
    template = (
        "{% if messages[0]['content'] == 'bad' %}"
        + LOOP
        + "{% endif %}{% for m in messages %}{{ m.content }} {% endfor %}"
    )
    make_toy_tokenizer(template=template).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setattr(encoding, "ALONE_ROWS", 1)
    rows = [PAIR, PAIR, PreferencePair((Message("user", "bad"),), (GOOD,), (BAD,), row=3)]

    with pytest.raises(InvalidArgumentError, match=BEYOND):
        list(RowEncoder(tmp_path, load_limited(tmp_path), workers=2).encode(rows))


def test_what_is_rendered_elsewhere_is_what_is_rendered_here(
    tmp_path: Path, make_toy_tokenizer: Callable[..., Any]
) -> None:
    here = make_toy_tokenizer()
    here.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    there = load_limited(tmp_path)

    for tokenize in (
        lambda tokenizer: encode_rows(tokenizer, [PAIR]),
        lambda tokenizer: encode_prompt(tokenizer, (USER,)),
        lambda tokenizer: encode_response(tokenizer, "the film", "was good"),
        turn_end_id,
        lambda tokenizer: list(RowEncoder(tmp_path, tokenizer).encode([PAIR] * 20)),
    ):
        assert tokenize(here) == tokenize(there)  # type: ignore[no-untyped-call]
    process = process_of(there)
    assert process is not None
    with pytest.raises(UnavailableError):
        process.call(endings.exit_with, 3, cpu_s=1)
    assert encode_prompt(there, (USER,)) == encode_prompt(here, (USER,))
    assert torch.is_grad_enabled()
