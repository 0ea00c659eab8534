"""Log-probs of responses: the plain way of running a model over groups."""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from madpo.data.collate import ResponseBatch, collate_responses
from madpo.data.tokenize import Encoded
from madpo.models.logps import ResponseGroup, ResponseLogps, log_sum_p2, padded_logps, row_logps

PROMPT = [1, 6]
GROUPS = [
    ResponseGroup(PROMPT, ([8, 9, 2], [10, 2])),
    ResponseGroup(PROMPT, ([8, 9, 2, 4, 2], [10, 2]), ((1, 2, 2), ())),
    ResponseGroup([1], ([7, 2], [2], [5, 5, 5, 2])),
    ResponseGroup([1, 6, 3], ([2],)),
]
"""Pairs, lists and single responses in one call; of one response the second and the third token do not count."""


def tiny_policy(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM) -> list[list[tuple[float, float]]]:
    """Log-prob and log of the sum of squared probabilities, one response and one token at a time, without padding."""
    found = []
    for group in GROUPS:
        for response, mask in group.masked:
            prompt = group.prompt_ids
            ids = [*prompt, *response]
            rows = []
            for position in range(len(prompt), len(ids)):
                if mask and position - len(prompt) in (1, 2):
                    continue
                probabilities = model(torch.tensor([ids[:position]])).logits[0, -1].double().softmax(0)
                rows.append((float(probabilities[ids[position]].log()), float(probabilities.square().sum().log())))
            found.append(rows)
    return found


def test_every_token_of_every_response_equals_scoring_it_alone() -> None:
    model = tiny_policy()

    responses = padded_logps(model, GROUPS, vocabulary=True)

    expected = one_by_one(model)
    assert responses.tokens.tolist() == [3, 2, 3, 2, 2, 1, 4, 1]
    assert responses.log_sum_p2 is not None
    assert not responses.log_sum_p2.requires_grad
    found = zip(responses.token_logps.tolist(), responses.log_sum_p2.tolist(), strict=True)
    torch.testing.assert_close(
        torch.tensor(list(found)), torch.tensor([row for rows in expected for row in rows]), rtol=1e-5, atol=1e-5
    )
    sums = torch.tensor([sum(logp for logp, _ in rows) for rows in expected])
    torch.testing.assert_close(responses.logps, sums, rtol=1e-5, atol=1e-5)


def test_values_of_tokens_become_rows_of_responses() -> None:
    responses = ResponseLogps(token_logps=torch.tensor([-1.0, -2.0, -3.0, -4.0]), tokens=torch.tensor([1, 3]))

    assert responses.padded(responses.token_logps).tolist() == [[-1, 0, 0], [-2, -3, -4]]
    assert responses.mask.tolist() == [[True, False, False], [True, True, True]]
    assert responses.logps.tolist() == [-1, -9]
    assert responses.log_sum_p2 is None


def test_the_answer_to_one_group_does_not_depend_on_the_others() -> None:
    model = tiny_policy()

    together = padded_logps(model, GROUPS).logps
    apart = torch.cat([padded_logps(model, [group]).logps for group in GROUPS])

    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_a_first_token_that_nothing_predicts_is_not_counted() -> None:
    first = row_logps(tiny_policy(), collate_responses([Encoded([], [7, 2])], pad_id=0))
    second = row_logps(tiny_policy(), collate_responses([Encoded([7], [2])], pad_id=0))

    torch.testing.assert_close(first.logps, second.logps)
    assert first.tokens.tolist() == [1]


def test_gradient_reaches_the_model_only_through_response_positions() -> None:
    logits = torch.randn(1, 5, 12, dtype=torch.float64, requires_grad=True)

    class Fixed(torch.nn.Module):
        def forward(self, **_: object) -> object:
            return type("Output", (), {"logits": logits})

    rows: ResponseBatch = collate_responses([Encoded([1, 6], [8, 9, 2])], pad_id=0)
    row_logps(Fixed(), rows, vocabulary=True).logps.sum().backward()

    assert logits.grad is not None
    assert logits.grad.abs().sum(-1).gt(0)[0].tolist() == [False, True, True, True, False]


def test_softmax_stays_float32_under_bf16() -> None:
    expected = padded_logps(tiny_policy(), GROUPS).logps

    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = padded_logps(tiny_policy(), GROUPS).logps
    loaded = padded_logps(tiny_policy(torch.bfloat16), GROUPS).logps

    assert autocast.dtype == loaded.dtype == torch.float32
    torch.testing.assert_close(autocast, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(loaded, expected, rtol=1e-2, atol=1e-2)
    assert padded_logps(tiny_policy(torch.float64), GROUPS).logps.dtype == torch.float64


def test_squared_probabilities_of_a_flat_and_of_a_sharp_distribution() -> None:
    flat_and_sharp: Tensor = torch.tensor([[0.0] * 8, [0.0] * 7 + [500.0]])

    torch.testing.assert_close(log_sum_p2(flat_and_sharp).exp(), torch.tensor([1 / 8, 1.0]))
