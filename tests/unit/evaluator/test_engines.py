"""Which engine draws an evaluation's responses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from madpo.config import load_settings
from madpo.errors import FailedPreconditionError
from madpo.sampling import vllm
from madpo.sampling.transformers import TransformersEngine
from madpo.storage.references import ResolvedModel
from madpo_evaluator.engines import sampling_engine
from madpo_evaluator.models import Models
from madpo_evaluator.service import build
from madpo_evaluator.settings import EvaluatorSettings
from tests.model_directories import save_directory

Make = Callable[..., Any]


def settings(tmp_path: Path, **fields: Any) -> EvaluatorSettings:
    return load_settings(
        EvaluatorSettings,
        store_url=f"file://{tmp_path}/store",
        redis_url="redis://127.0.0.1:1",
        workspace=tmp_path / "work",
        **fields,
    )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every engine of vLLM that is loaded."""
    arguments: list[dict[str, Any]] = []
    monkeypatch.setattr(vllm, "load_engine", lambda asked: arguments.append(dict(asked)) or (None, dict))
    return arguments


def engine_of(tmp_path: Path, asked: EvaluatorSettings, policy: ResolvedModel, model: Any, tokenizer: Any) -> Any:
    return sampling_engine(
        asked,
        Models(model, tokenizer, None),
        policy,
        rows=12,
        max_tokens=40,
        scratch=tmp_path,
        check=lambda: None,
    )


def test_transformers_draws_unless_another_is_asked_for(
    tmp_path: Path, make_toy_lm: Make, make_toy_tokenizer: Make, loaded: list[dict[str, Any]]
) -> None:
    policy = ResolvedModel(tmp_path / "policy", None, None)

    engine = engine_of(tmp_path, settings(tmp_path), policy, make_toy_lm(), make_toy_tokenizer())

    assert isinstance(engine, TransformersEngine)
    assert not loaded


def test_vllm_reads_the_policys_files_and_is_given_what_the_settings_say(
    tmp_path: Path, make_toy_lm: Make, make_toy_tokenizer: Make, loaded: list[dict[str, Any]]
) -> None:
    asked = settings(tmp_path, engine="vllm", vllm_memory=0.3, vllm_options={"tensor_parallel_size": 2})

    engine = engine_of(
        tmp_path, asked, ResolvedModel(tmp_path / "policy", None, None), make_toy_lm(), make_toy_tokenizer()
    )

    assert isinstance(engine, vllm.VllmEngine)
    assert loaded[0]["model"] == str(tmp_path / "policy")
    chosen = {name: loaded[0][name] for name in ("dtype", "max_model_len", "gpu_memory_utilization", "max_num_seqs")}
    assert chosen == {"dtype": "float32", "max_model_len": 40, "gpu_memory_utilization": 0.3, "max_num_seqs": 12}
    assert loaded[0]["tensor_parallel_size"] == 2


def test_vllm_is_given_an_adapter_merged_into_its_base(
    tmp_path: Path, make_toy_lm: Make, make_toy_tokenizer: Make, loaded: list[dict[str, Any]]
) -> None:
    tokenizer = make_toy_tokenizer()
    save_directory(make_toy_lm(seed=1), tokenizer, tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    save_directory(adapted, tokenizer, tmp_path / "adapter")
    policy = ResolvedModel(tmp_path / "adapter", tmp_path / "base", None)

    engine_of(tmp_path, settings(tmp_path, engine="vllm"), policy, adapted, tokenizer)

    whole = AutoModelForCausalLM.from_pretrained(loaded[0]["model"])
    ids = torch.tensor([[1, 6, 7, 8]])
    torch.testing.assert_close(whole(ids).logits, adapted(ids).logits)


def test_a_worker_without_the_engine_that_it_is_to_use_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madpo.config.find_spec", lambda _: None)

    with pytest.raises(
        FailedPreconditionError, match=r"MADPO_EVALUATOR_ENGINE=vllm, but vLLM is not installed .*'madpo\[vllm\]'"
    ):
        build(settings(tmp_path, engine="vllm"), CollectorRegistry())
    settings(tmp_path).require_engine()
