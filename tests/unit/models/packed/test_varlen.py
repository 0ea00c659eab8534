"""Variable-length attention on the CPU: torch's kernel stood in for by one that takes what it takes, and no more."""

import inspect

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from madpo.models.logps import padded_logps
from madpo.models.packed import attention, varlen
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.capability import Layout, prove
from madpo.models.packed.logps import PackedLogps
from madpo.models.packed.varlen import varlen_refusal
from tests.unit.models.packed.architectures import CONFIGS, make_groups, make_model
from tests.unit.models.packed.test_agreement import assert_agree, run

OF_2_11 = ("return_aux", "scale", "window_size")
OF_2_13 = (*OF_2_11, "enable_gqa", "seqused_k", "block_table", "num_splits")


class Kernel:
    """Flash attention over sequences one by one, in any dtype; causal with the last query at the last key."""

    def __init__(self, options=OF_2_13):
        self.calls = 0
        positional = [
            each
            for each in inspect.signature(varlen_attn).parameters.values()
            if each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in options]
        self.__signature__ = inspect.Signature([*positional, *named])

    def __call__(self, *arguments, **options):
        self.__signature__.bind(*arguments, **options)
        query, key, value, query_bounds, key_bounds, longest_query, longest_key = arguments
        self.calls += 1
        assert query.shape[-1] % 8 == 0
        assert query.shape[-1] <= 256
        assert {bounds.dtype for bounds in (query_bounds, key_bounds)} == {torch.int32}
        grouped = query.shape[1] != key.shape[1]
        assert grouped == options.get("enable_gqa", grouped)
        left, right = options["window_size"]
        assert right == 0
        parts = []
        for number in range(len(query_bounds) - 1):
            q, k = (slice(*bounds[number : number + 2].tolist()) for bounds in (query_bounds, key_bounds))
            rows, columns = q.stop - q.start, k.stop - k.start
            assert rows <= longest_query
            assert columns <= longest_key
            distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)[None, :]
            mask = (distance >= 0) & (distance <= (columns if left < 0 else left))
            tensors = (tensor[place].transpose(0, 1) for tensor, place in ((query, q), (key, k), (value, k)))
            out = scaled_dot_product_attention(*tensors, attn_mask=mask, scale=options["scale"], enable_gqa=grouped)
            parts.append(out.transpose(0, 1))
        return torch.cat(parts)


@pytest.fixture(params=[OF_2_11, OF_2_13], ids=["torch 2.11", "torch 2.13"])
def kernel(request, monkeypatch):
    kernel = Kernel(request.param)
    monkeypatch.setattr(varlen, "_kernel", lambda: kernel)
    monkeypatch.setattr(attention, "varlen_refusal", lambda *_: "")
    return kernel


def test_the_installed_kernel_is_called_by_names_it_has():
    assert {*OF_2_13} == varlen._kernel_options() - {
        *("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
    }


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share", [True, False])
def test_log_probs_and_gradients_are_those_of_padded_batches(name, share, kernel):
    model = make_model(name, dtype=torch.float64)
    expected = run(model, padded_logps, vocabulary=True)
    use_packed_attention(model)

    found = run(model, PackedLogps(share=share), vocabulary=True)

    assert_agree(found, expected, logps=1e-12, gradients=1e-6)
    assert kernel.calls


@pytest.mark.parametrize("size", [1, 20, 64, 96, 200])
def test_heads_of_any_size_are_padded_to_what_the_kernel_takes(size, kernel):
    from tests.unit.models.packed.test_layout import TABLE

    torch.manual_seed(0)
    tokens = TABLE.segments[-1].end
    query, key, value = (torch.randn(1, heads, tokens, size, dtype=torch.float64) for heads in (4, 2, 2))
    options = {"attention_mask": None, "segments": TABLE}

    found, _ = attention.packed_attention(torch.nn.Module(), query, key, value, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_refusal", varlen_refusal)
        expected, _ = attention.packed_attention(torch.nn.Module(), query, key, value, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert kernel.calls == 1


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "dtype", "size", "capability", "options", "why"),
    [
        (CUDA, torch.bfloat16, 128, (9, 0), OF_2_13, ""),
        (CUDA, torch.float16, 20, (8, 0), OF_2_11, ""),
        (CUDA, torch.bfloat16, 256, (12, 0), OF_2_13, ""),
        (torch.device("cpu"), torch.bfloat16, 64, (9, 0), OF_2_13, "there is no GPU"),
        (CUDA, torch.float32, 64, (9, 0), OF_2_13, "the kernel is for half precision, not float32"),
        (CUDA, torch.bfloat16, 257, (9, 0), OF_2_13, "the kernel takes heads of at most 256 numbers, not 257"),
        (CUDA, torch.bfloat16, 64, (7, 5), OF_2_13, "T4 has compute capability 7.5, the kernel needs 8.0"),
        (CUDA, torch.bfloat16, 64, (9, 0), ("return_aux",), "has no varlen_attn with scale and window_size: use 2.11"),
    ],
)
def test_it_is_used_where_the_kernel_can_be(monkeypatch, device, dtype, size, capability, options, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "T4")
    monkeypatch.setattr(varlen, "_kernel", lambda: Kernel(options))

    refusal = varlen_refusal(device, dtype, size)

    assert why in refusal
    assert bool(refusal) == bool(why)


def test_a_kernel_that_fails_is_said_and_rows_are_padded(monkeypatch, kernel):
    model = make_model("llama", dtype=torch.float32)
    use_packed_attention(model)

    def fail(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(attention, "varlen_attention", fail)

    found = prove(
        Layout("packed"),
        model,
        make_groups(),
        run=lambda model, groups: PackedLogps(share=True)(model, groups).token_logps,
        reference=lambda model, groups: padded_logps(model, groups).token_logps,
    )

    assert found.name == "padded"
    assert "no kernel image" in found.reason
