"""How far a policy is from its reference: KL along sampled responses, log-ratios of given pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from madpo.data.collate import PairBatch, ResponseBatch, collate_responses
from madpo.data.tokenize import Encoded
from madpo.errors import FailedPreconditionError
from madpo.models.logps import row_logps
from madpo_evaluator.models import Reference

_MAX_LOGITS = 2**26
"""Logits per model in memory at a time (256 MiB in float32), unless one response alone needs more."""


@torch.inference_mode()
def kl_to_reference(
    policy: PreTrainedModel, reference: Reference, responses: Sequence[Encoded], *, pad_id: int
) -> list[float]:
    """KL(policy || reference) along each response, in nats.

    Sums, over the response's positions (EOS included), the divergence between the two next-token distributions given
    the prefix: exact over the whole vocabulary, in float32 or better, at temperature 1. Its mean over responses drawn
    at temperature 1 estimates the sequence KL without bias. The sampled log-ratio has the same mean but is so
    heavy-tailed that a few samples decide it, and single values may be negative.

    Raises:
        FailedPreconditionError: The two models have vocabularies of different size.
    """
    vocabulary = policy.config.get_text_config().vocab_size
    longest = max(len(response.prompt_ids) + len(response.response_ids) for response in responses)
    rows = max(1, _MAX_LOGITS // (longest * vocabulary))
    values: list[float] = []
    for start in range(0, len(responses), rows):
        batch = collate_responses(responses[start : start + rows], pad_id=pad_id).to(policy.device)
        policy_logits = _response_logits(policy, batch)
        with reference() as model:
            reference_logits = _response_logits(model, batch)
        values += _sum_kl(policy_logits, reference_logits, batch).tolist()
    return values


@torch.inference_mode()
def log_ratio_diff(policy: PreTrainedModel, reference: Reference, batch: PairBatch) -> list[float]:
    """Chosen minus rejected log-ratio of each pair, in nats: the implicit margin over beta."""
    batch = batch.to(policy.device)
    ours = row_logps(policy, batch).logps
    with reference() as model:
        theirs = row_logps(model, batch).logps
    chosen, rejected = (ours - theirs).chunk(2)
    diff: Tensor = chosen - rejected
    return [float(value) for value in diff]


def _response_logits(model: PreTrainedModel, batch: ResponseBatch) -> Tensor:
    """Logits [N, V] that predict the response tokens, row by row."""
    first = int(batch.response_mask.any(dim=0).nonzero()[0])  # the earliest response token of all rows
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        logits_to_keep=batch.input_ids.shape[1] - first + 1,
    ).logits
    selected: Tensor = logits[:, :-1][batch.response_mask[:, first:]]
    return selected.to(torch.promote_types(selected.dtype, torch.float32))


def _sum_kl(policy_logits: Tensor, reference_logits: Tensor, batch: ResponseBatch) -> Tensor:
    """KL summed over each row's positions [B], float64."""
    if policy_logits.shape != reference_logits.shape:
        raise FailedPreconditionError(
            f"KL needs one vocabulary, but the policy has {policy_logits.shape[1]} tokens "
            f"and the reference {reference_logits.shape[1]}"
        )
    policy_logps = functional.log_softmax(policy_logits, dim=-1)
    reference_logps = functional.log_softmax(reference_logits, dim=-1)
    per_token = (policy_logps.exp() * (policy_logps - reference_logps)).sum(dim=-1).double()
    row = batch.response_mask.nonzero()[:, 0]
    return per_token.new_zeros(batch.size).index_add_(0, row, per_token)
