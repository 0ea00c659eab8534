"""Log-probs from hidden states in chunks, against logits of all tokens at once."""

import pytest
import torch

from madpo.models.packed import head as head_module
from madpo.models.packed.head import Head, token_logps

TOKENS, SIZE, VOCABULARY = 10, 8, 50


def make(dtype, *, bias=False, frozen=False, **options):
    torch.manual_seed(0)
    weight = (2 * torch.randn(VOCABULARY, SIZE, dtype=dtype)).requires_grad_(not frozen)
    offset = torch.randn(VOCABULARY, dtype=dtype).requires_grad_(not frozen) if bias else None
    hidden = torch.randn(TOKENS, SIZE, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    return Head(weight, offset, **options), hidden, targets


def whole(head, hidden, targets):
    logits = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logps = logits.log_softmax(dim=-1)
    return logps.gather(1, targets[:, None])[:, 0], (2 * logps).logsumexp(dim=-1)


def gradients(logps, head, hidden):
    inputs = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None and tensor.requires_grad]
    weights = torch.linspace(-1, 2, TOKENS, dtype=logps.dtype)
    return torch.autograd.grad((logps * weights).sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("kept", [0, 1, 100])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.3}, {"softcap": 5.0}, {"bias": True, "scale": 2.0, "softcap": 4.0}]
)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_chunks_agree_with_all_logits_at_once(monkeypatch, dtype, tolerance, frozen, options, kept):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 3 * VOCABULARY * dtype.itemsize)
    monkeypatch.setattr(head_module, "KEPT_BYTES", kept * 3 * VOCABULARY * dtype.itemsize)
    head, hidden, targets = make(dtype, frozen=frozen, **options)
    expected, expected_p2 = whole(head, hidden, targets)

    logps, log_sum_p2 = token_logps(head, hidden, targets, vocabulary=True)

    torch.testing.assert_close(logps, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_sum_p2, expected_p2, rtol=tolerance, atol=tolerance)
    for found, wanted in zip(gradients(logps, head, hidden), gradients(expected, head, hidden), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    # Probabilities that were kept are not used up.
    for found, again in zip(gradients(logps, head, hidden), gradients(logps, head, hidden), strict=True):
        assert torch.equal(found, again)


def test_large_logits_stay_finite():
    head, hidden, targets = make(torch.float32)

    logps, _ = token_logps(head, 1e4 * hidden, targets)

    assert logps.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(logps, head, hidden))


def test_half_precision_sums_in_float32():
    head, hidden, targets = make(torch.float32)
    expected, _ = whole(head, hidden, targets)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = token_logps(head, hidden, targets)

    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=0.02, atol=0.1)
    for found, wanted in zip(gradients(logps, head, hidden), gradients(expected, head, hidden), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


def test_no_tensor_of_tokens_by_vocabulary_is_left_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 2 * VOCABULARY * 4)
    monkeypatch.setattr(head_module, "KEPT_BYTES", 5 * VOCABULARY * 4)
    head, hidden, targets = make(torch.float32)
    sizes = []

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda it: it):
        token_logps(head, hidden, targets)

    assert sizes.count(2 * VOCABULARY) == 2
    assert sum(size for size in sizes if size != head.weight.numel()) <= 4 * VOCABULARY + TOKENS * (SIZE + 3)
