import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from madpo.data.collate import collate_pairs, collate_responses
from madpo.data.tokenize import Encoded
from madpo.losses.logps import pair_logps, response_logps

A = Encoded([1, 6], [8, 9, 2])
B = Encoded([1, 6], [10, 2])
C = Encoded([1], [7, 2])
D = Encoded([1], [2])


def tiny_policy(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def reference_logps(model: LlamaForCausalLM, row: Encoded) -> Tensor:
    """One row, no padding, one token at a time."""
    ids = row.prompt_ids + row.response_ids
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for position in range(len(row.prompt_ids), len(ids)):
            logits = model(torch.tensor([ids[:position]])).logits[0, -1].double()
            total += logits[ids[position]] - logits.logsumexp(0)
    return total


def test_pairs_become_chosen_rows_then_rejected_rows_padded_right() -> None:
    batch = collate_pairs([(A, B), (C, D)], pad_id=0)

    assert batch.size == 2
    assert batch.input_ids.tolist() == [[1, 6, 8, 9, 2], [1, 7, 2, 0, 0], [1, 6, 10, 2, 0], [1, 2, 0, 0, 0]]
    assert batch.attention_mask.sum(-1).tolist() == [5, 3, 4, 2]
    assert [row.nonzero().flatten().tolist() for row in batch.response_mask] == [[2, 3, 4], [1, 2], [2, 3], [1]]


def test_masks_do_not_depend_on_the_padding_id() -> None:
    by_pad, by_eos = (collate_responses([A, D], pad_id=pad) for pad in (0, 2))

    assert torch.equal(by_pad.attention_mask, by_eos.attention_mask)
    assert torch.equal(by_pad.response_mask, by_eos.response_mask)
    assert by_pad.size == 2
    assert by_pad.to("meta").input_ids.is_meta


def test_logps_equal_scoring_each_row_alone_token_by_token() -> None:
    model = tiny_policy()

    logps, tokens = response_logps(model, collate_responses([A, B, C, D], pad_id=0))

    expected = torch.stack([reference_logps(model, row) for row in (A, B, C, D)])
    torch.testing.assert_close(logps.double(), expected, rtol=1e-5, atol=1e-5)
    assert tokens.tolist() == [3, 2, 2, 1]


def test_pair_logps_keep_the_two_sides_and_the_order_of_pairs() -> None:
    model = tiny_policy()

    logps = pair_logps(model, collate_pairs([(A, B), (C, D)], pad_id=0))

    torch.testing.assert_close(logps.chosen, response_logps(model, collate_responses([A, C], pad_id=0))[0])
    torch.testing.assert_close(logps.rejected, response_logps(model, collate_responses([B, D], pad_id=0))[0])
    assert logps.chosen_tokens.tolist() == [3, 2]
    assert logps.rejected_tokens.tolist() == [2, 1]


def test_a_first_token_that_nothing_predicts_is_not_counted() -> None:
    logps, tokens = response_logps(tiny_policy(), collate_responses([Encoded([], [7, 2])], pad_id=0))

    torch.testing.assert_close(
        logps, response_logps(tiny_policy(), collate_responses([Encoded([7], [2])], pad_id=0))[0]
    )
    assert tokens.tolist() == [1]


def test_gradient_reaches_the_model_only_through_response_positions() -> None:
    logits = torch.randn(1, 5, 12, dtype=torch.float64, requires_grad=True)

    class Fixed(torch.nn.Module):
        def forward(self, **_: object) -> object:
            return type("Output", (), {"logits": logits})

    response_logps(Fixed(), collate_responses([A], pad_id=0))[0].sum().backward()

    assert logits.grad is not None
    assert logits.grad.abs().sum(-1).gt(0)[0].tolist() == [False, True, True, True, False]


def test_softmax_stays_float32_under_bf16() -> None:
    batch = collate_pairs([(A, B), (C, D)], pad_id=0)
    expected = pair_logps(tiny_policy(), batch).chosen

    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = pair_logps(tiny_policy(), batch).chosen
    loaded = pair_logps(tiny_policy(torch.bfloat16), batch).chosen

    assert autocast.dtype == loaded.dtype == torch.float32
    torch.testing.assert_close(autocast, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(loaded, expected, rtol=1e-2, atol=1e-2)
    assert pair_logps(tiny_policy(torch.float64), batch).chosen.dtype == torch.float64
