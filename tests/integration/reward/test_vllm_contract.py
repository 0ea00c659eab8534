"""The scorer on the real vLLM, beside transformers; where `make bench-peers` has made its environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from madpo_reward.encoding import Text
from madpo_reward.scorer import Scorer, ScorerConfig, load_scorer
from tests.model_directories import save_directory

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / "out" / "bench" / "vllm" / "bin" / "python"
SOURCES = [ROOT, ROOT / "src", ROOT / "services" / "reward"]
TEXTS = [
    ("good film", " a quiet surprise"),
    ("good film", " bad"),
    ("", "film"),
    ("the film was long and the sea was wide", " good good good bad"),
]

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="no environment with vLLM: make bench-peers"),
    pytest.mark.timeout(1800),
]


def ours(directory: Path, texts: list[tuple[str, str]], base: Path | None = None) -> tuple[Scorer, list[float]]:
    config = ScorerConfig(dtype="fp32", max_tokens=256, batch_tokens=0)
    scorer = load_scorer("whole", directory, base_directory=base, config=config)
    tokens = scorer.encode_texts([Text("text", *each) for each in texts])
    rewards = [0.0] * len(texts)
    for unit in scorer.plan(tokens):
        for place, reward in zip(unit.places, scorer.forward([unit])[0], strict=True):
            rewards[place] = reward
    return scorer, rewards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> Path:
    root = tmp_path_factory.mktemp("vllm")
    tokenizer = make_toy_tokenizer()
    torch.manual_seed(0)
    whole = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            num_labels=1,
        )
    )
    torch.nn.init.normal_(whole.score.weight)
    save_directory(whole, tokenizer, root / "whole")
    config = LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    adapted = get_peft_model(AutoModelForSequenceClassification.from_pretrained(root / "whole"), config)
    save_directory(adapted, tokenizer, root / "adapter")
    unsupported = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, hidden_dim=48, n_layers=1, n_heads=2, num_labels=1
    )
    save_directory(DistilBertForSequenceClassification(unsupported), tokenizer, root / "unsupported")
    return root


@pytest.fixture(scope="module")
def answer(root: Path) -> dict[str, Any]:
    request = {"root": str(root), "texts": TEXTS, "packages": [each for each in sys.path if "site-packages" in each]}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    program = Path(__file__).with_name("vllm_program.py")
    done = subprocess.run([PYTHON, program, json.dumps(request)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_same_tokens_have_the_same_raw_logits_to_the_tolerance(root: Path, answer: dict[str, Any]) -> None:
    scorer, expected = ours(root / "whole", TEXTS)

    assert answer["ids"] == [list(each.ids) for each in scorer.encode_texts([Text("text", *each) for each in TEXTS])]
    assert answer["whole"] == pytest.approx(expected, abs=1e-4)
    assert answer["alone"] == pytest.approx(expected, abs=1e-4)
    assert any(abs(each) > 1 for each in expected)  # no probabilities
    assert answer["revision"] != scorer.revision
    assert answer["layout"].startswith("vllm ")


def test_scores_after_a_step_that_failed_are_right(root: Path, answer: dict[str, Any]) -> None:
    _, expected = ours(root / "whole", [(prompt + " film" * 150, response) for prompt, response in TEXTS])

    assert answer["short_of_memory"] == "ShortOfMemoryError"
    assert answer["fresh"] == pytest.approx(expected, abs=1e-4)


def test_an_adapter_is_scored_merged_and_another_model_after_the_first(root: Path, answer: dict[str, Any]) -> None:
    _, expected = ours(root / "adapter", TEXTS, base=root / "whole")

    assert answer["adapter"] == pytest.approx(expected, abs=1e-4)
    assert answer["adapter"] != pytest.approx(answer["whole"], abs=1e-2)


def test_a_family_that_vllm_does_not_take_is_refused_with_the_engine_that_does(answer: dict[str, Any]) -> None:
    kind, message = answer["refusal"]

    assert kind == "FailedPreconditionError"
    assert "MADPO_REWARD_ENGINE=transformers may take the model" in message
