"""What a reward model says of texts: one raw logit each."""

from typing import Any

import torch
from torch import Tensor


def reward_scores(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Raw reward logits, read at each row's last attended token.

    Transformers' own classification heads find that token by comparing ids with the padding id, which misses a closing
    EOS when EOS is also the padding; here the attention mask decides. The head runs in float32 also under autocast.
    Models that read elsewhere, such as encoders their first token, do it their own way.

    Args:
        model: From `load_reward_model`.
        input_ids: [B, T], padded on the right.
        attention_mask: [B, T], 1 on tokens.

    Returns:
        Rewards [B], float32, with gradient when the model's weights want one.
    """
    inner = inner_model(model)
    if not reads_last_token(model):
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.float().squeeze(-1)
    hidden = inner.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    last = attention_mask.sum(dim=-1) - 1
    return head_scores(model, hidden[torch.arange(len(last), device=last.device), last])


def head_scores(model: Any, hidden: Tensor) -> Tensor:
    """What the scoring head makes of hidden states [R, hidden size]: rewards [R], in float32 or better."""
    head = inner_model(model).score
    weight, bias = head.weight, getattr(head, "bias", None)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        # Not `linear`: with one output its kernels give a row other bits in another place of the batch.
        scores: Tensor = (hidden.to(dtype) * weight.to(dtype)).sum(dim=-1)
        if bias is not None:
            scores = scores + bias.to(dtype)
    return scores


def reads_last_token(model: Any) -> bool:
    """Whether the score is a linear map of the last token's hidden state: transformers calls such a head `score`."""
    return hasattr(getattr(inner_model(model), "score", None), "weight")


def padding_of(model: Any) -> int:
    """The id to pad a batch of a model with: its configuration's, which some heads look for."""
    return int(inner_model(model).config.get_text_config().pad_token_id or 0)


def inner_model(model: Any) -> Any:
    """The transformers model, without adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
