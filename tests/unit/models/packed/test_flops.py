"""The work of a step, counted by torch: what must be computed is computed once, and nothing else."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig, LlamaForCausalLM

from madpo.models.logps import ResponseGroup, padded_logps
from madpo.models.packed import head as head_module
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.logps import PackedLogps

# Sizes in proportion to those of a model of 8 billion parameters with 128 thousand tokens: the head is a small part.
LAYERS, HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 4, 64, 192, 4, 256

# torch counts no attention on the CPU by itself; as on CUDA, all keys of a call count for all of its queries.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *args, out_val=None, **options: sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *args, out_val=None, **options: sdpa_backward_flop_count(
            gradient.shape, query.shape, key.shape, value.shape
        )
    ),
}
for formula in ATTENTION.values():
    formula._get_raw = True  # type: ignore[attr-defined]


def make_pairs(count: int = 16) -> list[ResponseGroup]:
    """Pairs of lengths as in preference data: lognormal, median 128 for prompts and responses."""
    source = random.Random(11)

    def tokens(first: int, sigma: float, most: int) -> list[int]:
        length = int(min(most, max(16, source.lognormvariate(4.85, sigma))))
        return [first, *(source.randrange(4, VOCABULARY) for _ in range(length - 1))]

    return [ResponseGroup(tokens(1, 0.7, 640), (tokens(2, 0.5, 384), tokens(3, 0.5, 384))) for _ in range(count)]


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    use_packed_attention(model)
    return model


def minimum(pairs: list[ResponseGroup]) -> int:
    """Forward and backward pass with each prompt once, and the head on response tokens, computed once more."""
    flops = 0
    for prompt, (chosen, rejected), _ in pairs:
        p, c, r = len(prompt), len(chosen), len(rejected)
        layer = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE) * (p + c + r)
        attention = 4 * HIDDEN * (p * p + (c + r) * p + c * c + r * r)
        # Backward: twice the forward pass of a layer; of attention five products, where forward has two.
        flops += LAYERS * (3 * layer + attention + attention * 5 // 2)
        flops += 4 * 2 * HIDDEN * VOCABULARY * (c + r)
    return flops


def counted(logps_of, model, pairs) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        logps_of(model, pairs).logps.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kept", [0, head_module.KEPT_BYTES])
def test_a_step_takes_no_more_than_what_it_must_compute(monkeypatch, kept):
    monkeypatch.setattr(head_module, "KEPT_BYTES", kept)
    model, pairs = make_model(), make_pairs()

    flops = counted(PackedLogps(), model, pairs)

    assert flops == pytest.approx(minimum(pairs), rel=0.05)
    assert flops <= 1.05 * minimum(pairs)


def test_repeated_prompts_and_padding_are_seen_by_this_count():
    model, pairs = make_model(), make_pairs()

    unshared, padded = (counted(logps_of, model, pairs) for logps_of in (PackedLogps(share=False), padded_logps))

    assert unshared > 1.25 * minimum(pairs)
    assert padded > 2.5 * minimum(pairs)


def test_every_token_is_run_through_the_blocks_once():
    pairs = make_pairs(4)
    seen = []
    model = make_model()
    model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))

    PackedLogps()(model, pairs)

    assert seen == [sum(len(prompt) + sum(map(len, responses)) for prompt, responses, _ in pairs)]
