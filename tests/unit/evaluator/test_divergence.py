"""KL along responses, and log-ratios of pairs, against counting by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from madpo.data.collate import collate_pairs
from madpo.data.tokenize import Encoded
from madpo.errors import FailedPreconditionError
from madpo_evaluator import divergence
from madpo_evaluator.divergence import kl_to_reference, log_ratio_diff
from madpo_evaluator.models import adapter_off, separate_model

MakeModel = Callable[..., Any]

RESPONSES = [
    Encoded([1, 6, 7], [8, 9, 11, 2]),
    Encoded([1], [6, 2]),
    Encoded([1, 6, 7, 8, 10, 5, 3], [9]),
]


def next_token_logps(model: Any, prefix: list[int]) -> list[float]:
    """log p(. | prefix) of every token, by plain float64 arithmetic on the model's logits."""
    with torch.no_grad():
        logits = [float(value) for value in model(input_ids=torch.tensor([prefix])).logits[0, -1]]
    top = max(logits)
    total = top + math.log(sum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def kl_by_enumeration(policy: Any, reference: Any, response: Encoded) -> float:
    total = 0.0
    for position in range(len(response.response_ids)):
        prefix = response.prompt_ids + response.response_ids[:position]
        p, q = next_token_logps(policy, prefix), next_token_logps(reference, prefix)
        total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return total


def test_kl_equals_the_enumeration_over_the_vocabulary(make_toy_lm: MakeModel) -> None:
    policy, reference = make_toy_lm(seed=1).double(), make_toy_lm(seed=2).double()

    values = kl_to_reference(policy, separate_model(reference), RESPONSES, pad_id=0)

    expected = [kl_by_enumeration(policy, reference, response) for response in RESPONSES]
    assert values == pytest.approx(expected, rel=1e-9)
    assert min(expected) > 0.1


def test_kl_does_not_depend_on_how_responses_are_chunked(
    make_toy_lm: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, reference = make_toy_lm(seed=1), separate_model(make_toy_lm(seed=2))
    whole = kl_to_reference(policy, reference, RESPONSES, pad_id=0)

    monkeypatch.setattr(divergence, "_MAX_LOGITS", 1)

    assert kl_to_reference(policy, reference, RESPONSES, pad_id=0) == pytest.approx(whole, rel=1e-5)


def test_kl_of_a_model_to_itself_is_exactly_zero(make_toy_lm: MakeModel) -> None:
    assert kl_to_reference(make_toy_lm(seed=1), separate_model(make_toy_lm(seed=1)), RESPONSES, pad_id=0) == [0.0] * 3


def test_mean_kl_over_all_responses_is_the_kl_of_the_response_distributions(make_toy_lm: MakeModel) -> None:
    policy, reference = make_toy_lm(seed=3, vocab_size=5).double(), make_toy_lm(seed=4, vocab_size=5).double()
    pairs = [Encoded([1], [first, second]) for first in range(5) for second in range(5)]

    values = kl_to_reference(policy, separate_model(reference), pairs, pad_id=0)

    def logp(model: Any, response: Encoded) -> float:
        first, second = response.response_ids
        return next_token_logps(model, [1])[first] + next_token_logps(model, [1, first])[second]

    of_sequences = sum(math.exp(logp(policy, each)) * (logp(policy, each) - logp(reference, each)) for each in pairs)
    expected = sum(math.exp(logp(policy, each)) * value for each, value in zip(pairs, values, strict=True))
    assert expected == pytest.approx(of_sequences, rel=1e-9)


def test_a_switched_off_adapter_is_the_separate_base_model(make_toy_lm: MakeModel) -> None:
    policy = _with_random_adapter(make_toy_lm(seed=1))

    by_adapter = kl_to_reference(policy, adapter_off(policy), RESPONSES, pad_id=0)

    assert by_adapter == kl_to_reference(policy, separate_model(make_toy_lm(seed=1)), RESPONSES, pad_id=0)
    assert min(by_adapter) > 0.0


def test_models_with_other_vocabularies_are_refused(make_toy_lm: MakeModel) -> None:
    reference = separate_model(make_toy_lm(vocab_size=13))

    with pytest.raises(FailedPreconditionError, match=r"policy has 12 tokens and the reference 13"):
        kl_to_reference(make_toy_lm(), reference, RESPONSES, pad_id=0)


def test_log_ratio_diff_is_the_implicit_margin_over_beta(make_toy_lm: MakeModel) -> None:
    policy, reference = make_toy_lm(seed=1).double(), make_toy_lm(seed=2).double()
    pairs = [(Encoded([1, 6], [8, 2]), Encoded([1, 6], [10, 11, 2])), (Encoded([1], [9, 2]), Encoded([1], [2]))]

    diffs = log_ratio_diff(policy, separate_model(reference), collate_pairs(pairs, pad_id=0))

    def log_ratio(response: Encoded) -> float:
        ids = response.prompt_ids + response.response_ids
        return sum(
            next_token_logps(policy, ids[:end])[ids[end]] - next_token_logps(reference, ids[:end])[ids[end]]
            for end in range(len(response.prompt_ids), len(ids))
        )

    assert diffs == pytest.approx([log_ratio(chosen) - log_ratio(rejected) for chosen, rejected in pairs], rel=1e-9)


def _with_random_adapter(model: Any) -> PeftModel:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return adapted.eval()
