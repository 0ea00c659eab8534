"""The host, the peak of its matrix products, attention and log-probs over packed rows."""

import os
import platform
import subprocess
import time
from contextlib import nullcontext
from typing import Any

import torch

from bench.gpu_check.check import Check, Figures, Setting, Skipped, relative_error, require, synchronize
from bench.models import Size, causal_lm
from madpo.models.logps import ResponseGroup, padded_logps
from madpo.models.packed import attention, varlen
from madpo.models.packed.attention import _sdpa, packed_attention
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.layout import Segment, SegmentTable
from madpo.models.packed.logps import PackedLogps

_SMALL = Size(2, 256, 512, 8, 2, 1024)
_TABLE = SegmentTable((Segment(0, 37, (20, 1, 33)), Segment(91, 12, (50, 7, 19, 3, 64))))
"""A prompt with three responses, one of a single token; and a list of five."""


def facts(setting: Setting) -> Figures:
    """What the numbers of the others depend on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "varlen_options": sorted(varlen._kernel_options()),
    }
    if setting.is_cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        free, total = torch.cuda.mem_get_info(setting.device)
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(total / 2**30, 1),
            "free_gib": round(free / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def matmul(setting: Setting) -> Figures:
    """TFLOP/s of square products, by precision: the peak that shares are told of."""
    found = {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        found[name] = round(matmul_rate(setting, dtype) / 1e12, 3)
    require(all(rate > 0 for rate in found.values()), "a product took no time", found)
    return {"tflop_per_s": found}


def matmul_rate(setting: Setting, dtype: torch.dtype) -> float:
    """FLOP/s of square products."""
    side, rounds = setting.matmul, 20
    left, right = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
    for number in range(rounds + 3):
        if number == 3:
            synchronize(setting.device)
            start = time.perf_counter()
        left @ right
    synchronize(setting.device)
    return 2 * side**3 * rounds / (time.perf_counter() - start)


def attention_over_rows(setting: Setting) -> Figures:
    """Packed attention against SDPA in float32, forward and backward."""
    dtype = torch.bfloat16 if setting.is_cuda else torch.float32
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return kernel(*arguments, **options)

    kernel, attention.varlen_attention = attention.varlen_attention, counted
    try:
        worst = _errors(setting, dtype)
    finally:
        attention.varlen_attention = kernel
    figures = {
        "worst": round(max(worst.values()), 6),
        "worst_case": max(worst, key=worst.__getitem__),
        "varlen_calls": calls,
    }
    require(figures["worst"] <= (2e-2 if setting.is_cuda else 1e-4), "attention is off", figures)
    if setting.is_cuda:
        refusal = varlen.varlen_refusal(setting.device, dtype, 64)
        require(calls == len(worst), refusal or "the variable-length kernel was not called", figures)
    return figures


def _errors(setting: Setting, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error of output and gradients, by shape of heads and window."""
    worst: dict[str, float] = {}
    cases = [
        (heads, groups, size, window)
        for heads, groups in ((8, 8), (8, 2), (8, 1))
        for size in (64, 96, 128, 256)
        for window in (None, 11)
    ]
    for heads, groups, size, window in cases:
        torch.manual_seed(size)
        tokens = _TABLE.segments[-1].end
        exact = [
            torch.randn(1, count, tokens, size, device=setting.device).requires_grad_()
            for count in (heads, groups, groups)
        ]
        given = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        query, *grouped = exact
        repeated = [tensor.repeat_interleave(heads // groups, dim=1) for tensor in grouped]
        expected = _sdpa(query, *repeated, _TABLE, window=window, scale=size**-0.5, dropout=0.0).transpose(1, 2)
        found, _ = packed_attention(torch.nn.Module(), *given, None, sliding_window=window, segments=_TABLE)
        by = torch.randn_like(expected)
        expected.backward(by)
        found.backward(by.to(dtype))
        errors = [
            relative_error(found, expected),
            *(relative_error(g.grad, e.grad) for g, e in zip(given, exact, strict=True)),
        ]
        worst[f"heads {heads}/{groups}, size {size}, window {window}"] = max(errors)
    return worst


def log_probs(setting: Setting) -> Figures:
    """Packed, unshared and padded log-probs and gradients of a small model, in float32 and bf16."""
    groups = _groups()
    exact = _values(setting, "padded", groups, torch.float64)
    errors = {
        f"{layout} {name}": [
            relative_error(*each) for each in zip(_values(setting, layout, groups, dtype), exact, strict=True)
        ]
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for layout in ("padded", "unshared", "packed")
    }
    figures = {name: [float(f"{value:.2g}") for value in values] for name, values in errors.items()}
    for layout in ("packed", "unshared"):
        require(max(errors[f"{layout} fp32"]) <= 1e-4, f"{layout} rows are off in float32", figures)
        for ours, theirs in zip(errors[f"{layout} bf16"], errors["padded bf16"], strict=True):
            require(ours <= 1.5 * theirs + 1e-3, f"{layout} rows are farther off than padded ones in bf16", figures)
    return figures


def _groups() -> list[ResponseGroup]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, _SMALL.vocabulary, (count,), generator=generator).tolist())

    shapes = [(30, (20, 25)), (7, (1, 40)), (64, (12, 12, 12, 30, 5))]
    return [ResponseGroup(ids(prompt), tuple(map(ids, responses))) for prompt, responses in shapes]


def _values(setting: Setting, layout: str, groups: list[ResponseGroup], dtype: torch.dtype) -> list[torch.Tensor]:
    """Log-probs, and the gradient of their sum by the embeddings and by the first projection."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = causal_lm(_SMALL).to(setting.device, torch.float64 if dtype == torch.float64 else torch.float32)
    if layout != "padded":
        prepared = prepare_layout(model, needs_head=True)
        if prepared.name == "padded":
            raise Skipped(prepared.reason)
    half = torch.autocast(setting.device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()
    with half:
        logps_of = padded_logps if layout == "padded" else PackedLogps(share=layout == "packed")
        logps = logps_of(model, groups).token_logps
    logps.sum().backward()
    return [logps, model.model.embed_tokens.weight.grad, model.model.layers[0].self_attn.q_proj.weight.grad]


CHECKS = (
    Check("facts", facts, 60),
    Check("matmul", matmul, 60),
    Check("attention", attention_over_rows, 60),
    Check("log-probs", log_probs, 60),
)
