"""Packed rows give the log-probs, scores and gradients of padded batches, on every architecture named."""

import json
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from madpo.data.collate import collate_responses
from madpo.data.tokenize import Encoded
from madpo.models.logps import padded_logps
from madpo.models.packed import attention
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.capability import Layout, prepare_layout, prove
from madpo.models.packed.logps import PackedLogps, packed_scores
from madpo.models.scores import reward_scores
from madpo_trainer.blocks import transformer_blocks
from tests.unit.models.packed.architectures import CONFIGS, make_groups, make_model

GROUPS = make_groups()


def run(model, logps_of, *, vocabulary=False):
    """Log-probs, and the gradient of a weighted sum of them by parameter."""
    result = logps_of(model, GROUPS, vocabulary=vocabulary)
    weights = torch.linspace(-1, 2, len(result.token_logps), dtype=result.token_logps.dtype)
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad((result.token_logps * weights).sum(), list(parameters.values()))
    return result, dict(zip(parameters, gradients, strict=True))


def assert_agree(found, expected, *, logps, gradients):
    (result, by_name), (reference, reference_by_name) = found, expected
    assert result.tokens.tolist() == reference.tokens.tolist()
    torch.testing.assert_close(result.token_logps, reference.token_logps, rtol=0, atol=logps)
    torch.testing.assert_close(result.logps, reference.logps, rtol=logps, atol=logps)
    if reference.log_sum_p2 is not None:
        torch.testing.assert_close(result.log_sum_p2, reference.log_sum_p2, rtol=0, atol=logps)
    largest = max(float(gradient.abs().max()) for gradient in reference_by_name.values())
    for name, gradient in reference_by_name.items():
        torch.testing.assert_close(
            by_name[name], gradient, rtol=0, atol=gradients * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share", [True, False])
# Norms of most of these models compute in float32 whatever comes in: that bounds the gradients of float64.
@pytest.mark.parametrize(
    ("dtype", "logps", "gradients"), [(torch.float64, 1e-12, 1e-6), (torch.float32, 1e-5, 1e-5)], ids=["fp64", "fp32"]
)
def test_log_probs_and_gradients_are_those_of_padded_batches(name, share, dtype, logps, gradients):
    model = make_model(name, dtype=dtype)
    expected = run(model, padded_logps, vocabulary=True)
    use_packed_attention(model)

    found = run(model, PackedLogps(share=share), vocabulary=True)

    assert_agree(found, expected, logps=logps, gradients=gradients)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_gradients_agree_to_rounding_where_the_model_computes_in_float64_throughout(name):
    model = make_model(name, dtype=torch.float64)
    expected = run(model, padded_logps)
    use_packed_attention(model)

    assert_agree(run(model, PackedLogps()), expected, logps=1e-12, gradients=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_batches_are_the_same_bits_on_a_prepared_model(name):
    model = make_model(name)
    expected, gradients = run(model, padded_logps)
    use_packed_attention(model)

    found, again = run(model, padded_logps)

    assert torch.equal(found.token_logps, expected.token_logps)
    assert all(torch.equal(again[key], gradient) for key, gradient in gradients.items())


def test_any_device_agrees_with_the_cpu_kernel(monkeypatch):
    model = make_model("gemma3", dtype=torch.float64)
    use_packed_attention(model)
    expected = run(model, PackedLogps())

    def other_device(query, key, value, blocks, scale):
        return attention._sdpa(query, key, value, table, window=window, scale=scale, dropout=0.0)

    blocks_of = attention.attention_blocks

    def remember(segments, sliding_window):
        nonlocal table, window
        table, window = segments, sliding_window
        return blocks_of(segments, sliding_window)

    table = window = None
    monkeypatch.setattr(attention, "attention_blocks", remember)
    monkeypatch.setattr(attention._BlockAttention, "apply", other_device)

    assert_agree(run(model, PackedLogps()), expected, logps=1e-12, gradients=1e-6)


def test_activations_may_be_recomputed():
    model = make_model("mistral")
    use_packed_attention(model)
    expected, gradients = run(model, PackedLogps())
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()

    found, again = run(model, PackedLogps())

    assert torch.equal(found.token_logps, expected.token_logps)
    assert all(torch.equal(again[key], gradient) for key, gradient in gradients.items())


def test_half_precision_is_close():
    model = make_model("qwen3")
    use_packed_attention(model)
    expected = PackedLogps()(model, GROUPS).token_logps

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, gradients = run(model, PackedLogps())

    assert found.token_logps.dtype == torch.float32
    torch.testing.assert_close(found.token_logps, expected, rtol=0.05, atol=0.2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_adapters_get_the_gradients_of_padded_batches_with_a_head_that_is_not_trained():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(make_model("llama"), config).eval()
    expected = run(model, padded_logps)

    assert prepare_layout(model, needs_head=True) == Layout("packed")
    assert_agree(run(model, PackedLogps()), expected, logps=1e-5, gradients=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gpt2", "gpt_neox", "mistral"])
def test_rewards_are_those_of_padded_batches(name):
    torch.manual_seed(0)
    config = deepcopy(CONFIGS[name])
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    model = model.double().eval()
    rows = [Encoded(list(group.prompt_ids), list(response)) for group in GROUPS for response in group.responses]
    batch = collate_responses(rows, pad_id=0)
    expected = reward_scores(model, batch.input_ids, batch.attention_mask)

    assert prepare_layout(model, needs_head=False).name in ("packed", "unshared")
    torch.testing.assert_close(packed_scores(model, GROUPS), expected, rtol=0, atol=1e-12)


def test_a_saved_model_does_not_remember_the_attention_it_was_trained_with(tmp_path):
    model = make_model("llama")
    use_packed_attention(model)

    model.save_pretrained(tmp_path)

    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_can_share_prompts_are_proved_to(name):
    model = make_model(name)
    layout = prepare_layout(model, needs_head=True)

    # GPT-2 and its kin bring dropout with them.
    assert layout.name == ("unshared" if name == "gpt2" else "packed")
    packed = PackedLogps(share=layout.name == "packed")
    assert prove(layout, model, GROUPS, run=token_logps(packed), reference=token_logps(padded_logps)) == layout


def test_values_that_differ_are_found_out():
    model = make_model("llama")
    layout = prepare_layout(model, needs_head=True)

    def crooked(model, groups):
        return token_logps(padded_logps)(model, groups) + 0.1

    found = prove(layout, model, GROUPS, run=crooked, reference=token_logps(padded_logps))

    assert found.name == "padded"
    assert "LlamaForCausalLM gives other values in packed rows" in found.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_dropout": 0.1}, "dropout is on"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "has layers of chunked_attention"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "has layers of linear_attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "change with the longest text"),
        ({"attn_logit_softcapping": 30.0}, "caps its attention scores"),
    ],
)
def test_what_cannot_share_says_why(change, reason):
    model = make_model("llama")
    for key, value in change.items():
        setattr(model.config, key, value)

    layout = prepare_layout(model, needs_head=True)

    assert layout.name == ("unshared" if "dropout" in reason else "padded")
    assert reason in layout.reason


def token_logps(logps_of):
    return lambda model, groups: logps_of(model, groups).token_logps


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own workings
def test_compiled_blocks_are_not_compiled_again_for_another_row():
    model = make_model("llama")
    use_packed_attention(model)
    rows = [make_groups(seed) for seed in range(3)]
    expected = [PackedLogps()(model, groups).token_logps for groups in rows]
    for block in transformer_blocks(model):
        block.compile(backend="eager", dynamic=True)
    torch._dynamo.utils.counters.clear()

    found, graphs = [], []
    for groups in rows:
        found.append(PackedLogps()(model, groups).token_logps)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    assert graphs[0] > 0
    assert len(set(graphs)) == 1
    for result, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_dropout_works_without_sharing_and_follows_the_seed(name):
    model = make_model(name)
    model.config.attention_dropout = 0.3
    for layer in model.base_model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.3
    assert prepare_layout(model, needs_head=True).name == "unshared"
    plain = PackedLogps(share=False)(model, GROUPS).token_logps
    model.train()

    torch.manual_seed(1)
    found, gradients = run(model, PackedLogps(share=False))
    torch.manual_seed(1)
    again, _ = run(model, PackedLogps(share=False))

    assert torch.equal(found.token_logps, again.token_logps)
    assert not torch.allclose(found.token_logps, plain, atol=1e-2)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_tokens_behind_a_cache_are_right_or_refused():
    model = make_model("llama").eval()
    use_packed_attention(model)
    ids = torch.arange(1, 7)[None]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = model(ids[:, :3]).past_key_values
        one = model(ids[:, 3:4], past_key_values=cache).logits

        torch.testing.assert_close(one, whole[:, 3:4])
        with pytest.raises(NotImplementedError, match="give the model attention_mask"):
            model(ids[:, 4:], past_key_values=cache)
