"""How texts become forward passes: no token twice, none for nothing, and bits that do not depend on the company."""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from madpo.models.scores import reward_scores
from madpo_reward.encoding import Tokens
from madpo_reward.layouts import Layout, PaddedRows, SharedPrompts, WholeTexts, may_share_prompts
from madpo_reward.scorer import ScorerConfig, load_scorer
from madpo_reward.settings import RewardSettings
from tests.model_directories import save_directory

VOCABULARY, LAYERS, HIDDEN, INTERMEDIATE, WINDOW = 300, 3, 64, 96, 24
UNPADDED = ScorerConfig(batch_tokens=0)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "num_labels": 1,
}
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=2),
    "mistral, sliding window": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=WINDOW),
    "gemma3, some layers sliding": lambda: Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: GPT2Config(**GPT2_SIZES, num_labels=1),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=HIDDEN, hidden_dim=INTERMEDIATE, n_layers=LAYERS, n_heads=4, num_labels=1
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return reward_model(CONFIGS[request.param]())


@pytest.fixture
def llama() -> Any:
    return reward_model(CONFIGS["llama"]())


def reward_model(config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval()
    if hasattr(model, "score"):
        # The default initialisation is too flat for wrong sums to show in the last bits.
        torch.nn.init.normal_(model.score.weight)
    return model


def layout_of(model: Any) -> Layout:
    layout = SharedPrompts if may_share_prompts(model) else WholeTexts
    return layout(model, max_tokens=256)


def score(layout: Layout, texts: Sequence[Tokens]) -> list[float]:
    rewards = {}
    for unit in layout.plan(texts):
        (of_unit,) = layout.forward([unit])
        rewards |= dict(zip(unit.places, of_unit, strict=True))
    return [rewards[place] for place in range(len(texts))]


@torch.inference_mode()
def score_plainly(model: Any, text: Tokens) -> float:
    input_ids = torch.tensor([text.ids])
    return float(reward_scores(model, input_ids, torch.ones_like(input_ids)))


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of one call, from the shapes [B, heads, tokens, head_dim]."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def some_texts(draw: random.Random, *, prompts: Sequence[int] = (1, 2, 7, 33, 90)) -> list[Tokens]:
    """Prompts of these lengths with one to three responses each, and a response without a prompt."""

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, VOCABULARY) for _ in range(length))

    shared = [(ids(length), draw.randrange(1, 4)) for length in prompts]
    return [
        *(Tokens(prompt, ids(draw.randrange(1, 70))) for prompt, responses in shared for _ in range(responses)),
        Tokens((), ids(20)),
    ]


def test_scores_are_the_same_bits_alone_and_in_any_company(model: Any) -> None:
    draw = random.Random(1)
    texts, layout = some_texts(draw), layout_of(model)

    together = score(layout, texts)
    order = draw.sample(range(len(texts)), len(texts))
    shuffled = dict(zip(order, score(layout, [texts[place] for place in order]), strict=True))

    assert [score(layout, [text])[0] for text in texts] == together
    assert [shuffled[place] for place in range(len(texts))] == together


def test_scores_agree_with_a_plain_forward_pass(model: Any) -> None:
    texts = some_texts(random.Random(2))

    assert score(layout_of(model), texts) == pytest.approx(
        [score_plainly(model, text) for text in texts], rel=1e-5, abs=1e-5
    )


def test_each_token_of_a_pair_goes_through_the_model_once(llama: Any) -> None:
    prompt = tuple(range(4, 54))
    chosen, rejected = Tokens(prompt, (7,) * 31), Tokens(prompt, (9,) * 12)
    layout, seen = SharedPrompts(llama, max_tokens=256), []
    llama.get_input_embeddings().register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))

    (unit,) = layout.plan([chosen, rejected])
    layout.forward([unit])

    assert seen == [(1, 50), (1, 31), (1, 12)]
    assert (unit.tokens, unit.positions) == (93, 93)


def test_a_pair_costs_the_fewest_flops(llama: Any) -> None:
    prompt, chosen, rejected = 50, 31, 12
    texts = [Tokens((5,) * prompt, (7,) * chosen), Tokens((5,) * prompt, (9,) * rejected)]
    layout = SharedPrompts(llama, max_tokens=256)
    units = layout.plan(texts)

    # The counter knows the attention kernels of GPUs only.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={attention: attention_flops}) as counter:
        layout.forward(units)

    projections = HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE
    keys = prompt * prompt + chosen * (prompt + chosen) + rejected * (prompt + rejected)
    fewest = LAYERS * (2 * projections * (prompt + chosen + rejected) + 2 * 2 * HIDDEN * keys)
    assert counter.get_total_flops() == fewest


def test_padded_rows_hold_one_text_each_in_a_shape_its_length_decides(llama: Any) -> None:
    layout = PaddedRows(llama, pad_id=0, max_width=96, batch_positions=400)

    units = layout.plan([Tokens((5,), (7,) * length) for length in (1, 30, 31, 63, 94)])

    assert layout.max_tokens == 95
    assert [(unit.shape.width, unit.shape.positions) for unit in units] == [
        (32, 12 * 32),
        (32, 12 * 32),
        (64, 4 * 64),
        (96, 4 * 96),
        (96, 4 * 96),
    ]
    assert [unit.tokens for unit in units] == [2, 31, 32, 64, 95]
    assert score(layout, [Tokens((5, 6), (7,))]) == pytest.approx(
        [score_plainly(llama, Tokens((5, 6), (7,)))], rel=1e-5
    )


def test_layers_that_change_in_place_do_not_share(llama: Any) -> None:
    assert may_share_prompts(llama)

    llama.config.layer_types = ["linear_attention", "full_attention", "full_attention"]

    assert not may_share_prompts(llama)


def test_positions_that_change_with_the_length_do_not_share(llama: Any) -> None:
    llama.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

    assert not may_share_prompts(llama)


def test_a_model_that_scores_wrongly_after_a_shared_prompt_is_scored_text_by_text(
    tmp_path: Path,
    make_toy_tokenizer: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = make_toy_tokenizer()
    config = LlamaConfig(**{**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    save_directory(reward_model(config), tokenizer, tmp_path)
    load = load_scorer("model", tmp_path, base_directory=None, config=UNPADDED)
    right = SharedPrompts._score
    monkeypatch.setattr(
        SharedPrompts, "_score", lambda self, texts: [reward + len(texts) for reward in right(self, texts)]
    )

    with caplog.at_level(logging.WARNING):
        fallen_back = load_scorer("model", tmp_path, base_directory=None, config=UNPADDED)

    assert (load.layout.name, fallen_back.layout.name) == ("shared", "whole")
    assert load.revision != fallen_back.revision
    assert [record.getMessage() for record in caplog.records] == ["reward model scored in another layout"]


@pytest.mark.parametrize("batch_tokens", [None, 256])
def test_a_model_whose_rows_change_each_other_is_scored_text_by_text(
    batch_tokens: int | None, tmp_path: Path, make_toy_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_toy_tokenizer()
    config = LlamaConfig(**{**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id})
    save_directory(reward_model(config), tokenizer, tmp_path)
    right = PaddedRows.forward
    monkeypatch.setattr(
        PaddedRows,
        "forward",
        lambda self, units: [[each + 2**-20 * len(units) for each in row] for row in right(self, units)],
    )

    scorer = load_scorer("model", tmp_path, base_directory=None, config=ScorerConfig(batch_tokens=batch_tokens))

    assert scorer.layout.name == "whole"


@pytest.mark.parametrize(
    ("hidden", "batch_tokens", "layout"),
    [
        (HIDDEN, None, "padded to 512 positions"),
        (256, None, "shared"),
        (HIDDEN, 0, "shared"),
        (256, 64, "padded to 64"),
    ],
)
def test_only_models_too_small_to_keep_a_cpu_busy_are_padded_there(
    hidden: int, batch_tokens: int | None, layout: str, tmp_path: Path, make_toy_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_toy_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": 2 * hidden}
    save_directory(reward_model(LlamaConfig(**sizes)), tokenizer, tmp_path)

    scorer = load_scorer("model", tmp_path, base_directory=None, config=ScorerConfig(batch_tokens=batch_tokens))

    assert scorer.layout.name.startswith(layout)


@pytest.mark.parametrize("batch_tokens", [None, 0, 32, 512])
def test_batches_are_as_wide_as_a_row_or_nothing_is_padded(batch_tokens: int | None, tmp_path: Path) -> None:
    store = {"store_url": f"file://{tmp_path}", "cache": tmp_path}

    assert RewardSettings(**store, batch_tokens=batch_tokens).batch_tokens == batch_tokens
    with pytest.raises(ValidationError, match="or at least 32"):
        RewardSettings(**store, batch_tokens=31)
