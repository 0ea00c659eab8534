"""What transformers and peft alone make of a model directory. Knows nothing of madpo, and runs under transformers 4.

As a program it answers requests, one JSON object a line, with one a line: `older.py` asks it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

Ids = Sequence[Sequence[int]]


def tokenize(directory: str, texts: Sequence[str], *, special_tokens: bool) -> Ids:
    """Ids of texts, with the special tokens that the tokenizer puts around them or only those they bring along."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(text, add_special_tokens=special_tokens)["input_ids"] for text in texts]


@torch.inference_mode()
def measure(
    directory: str,
    kind: str,
    ids: Ids,
    *,
    base: str | None = None,
    padding: int | None = None,
    attention: str | None = None,
) -> dict[str, Any]:
    """What a model says of rows of tokens: each alone, and all in one padded batch.

    Of a language model the log-probabilities of each row's tokens behind the first, of a reward model its score.

    Args:
        kind: `causal_lm` or `reward`.
        base: The directory is an adapter of this model.
        padding: What a batch is padded with, where the model's configuration does not say it.
        attention: The kernel, where the default is not to be had.
    """
    model = _load(directory, kind, base, attention)
    if padding is not None:
        model.config.get_text_config().pad_token_id = padding
    return {
        "alone": [_values(model, kind, [each])[0] for each in ids],
        "padded": _values(model, kind, ids),
        "dtype": str(model.config.dtype),
    }


@torch.inference_mode()
def measure_by_name(directory: str, ids: Ids, *, beside: str, attention: str | None = None) -> list[Any]:
    """As `measure` of an adapter, each row alone; peft finds its base by the name in its files, in `beside`."""
    from peft import AutoPeftModelForCausalLM

    with contextlib.chdir(beside):
        model = AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
    return [_values(model.eval(), "causal_lm", [each])[0] for each in ids]


@torch.inference_mode()
def generate(
    directory: str,
    prompts: Ids,
    *,
    base: str | None = None,
    attention: str | None = None,
    max_new_tokens: int = 40,
    **settings: Any,
) -> list[list[int]]:
    """What greedy decoding by the model's own generation settings, but for those given, adds to each prompt."""
    model = _load(directory, "causal_lm", base, attention)
    if base is not None and os.path.exists(os.path.join(directory, "generation_config.json")):
        model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
    model.generation_config.max_length = None
    answers = []
    for prompt in prompts:
        rows = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(rows), "do_sample": False, "max_new_tokens": max_new_tokens}
        answers.append(model.generate(input_ids=rows, **options, **settings)[0, len(prompt) :].tolist())
    return answers


@torch.inference_mode()
def divergence(directory: str, base: str, prompts: Ids, answers: Ids, *, attention: str | None = None) -> list[float]:
    """KL of an adapted model to its base along each answer, in nats, over the whole vocabulary."""
    model = _load(directory, "causal_lm", base, attention)
    values = []
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = torch.tensor([[*prompt, *answer]])
        ours = model(input_ids=rows).logits.log_softmax(-1)
        with model.disable_adapter():
            theirs = model(input_ids=rows).logits.log_softmax(-1)
        values.append(float((ours.exp() * (ours - theirs)).sum(-1)[0, len(prompt) - 1 : -1].sum()))
    return values


def _load(directory: str, kind: str, base: str | None, attention: str | None) -> Any:
    if kind == "causal_lm":
        model = AutoModelForCausalLM.from_pretrained(
            base or directory, dtype=torch.float32, attn_implementation=attention
        )
    else:
        labels = {} if base is None else {"num_labels": 1}  # the head comes with the adapter
        model = AutoModelForSequenceClassification.from_pretrained(
            base or directory, dtype=torch.float32, attn_implementation=attention, **labels
        )
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, directory)
    return model.eval()


def _values(model: Any, kind: str, ids: Ids) -> list[Any]:
    width = max(map(len, ids))
    padding = model.config.get_text_config().pad_token_id or 0
    rows = torch.tensor([[*each, *[padding] * (width - len(each))] for each in ids])
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids])
    logits = model(input_ids=rows, attention_mask=mask).logits
    if kind == "reward":
        return [float(value) for value in logits[:, 0]]
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, rows[:, 1:, None])[..., 0]
    return [row[: len(each) - 1].tolist() for row, each in zip(logps, ids, strict=True)]


CALLS = {
    "tokenize": tokenize,
    "measure": measure,
    "measure_by_name": measure_by_name,
    "generate": generate,
    "divergence": divergence,
}


def answer(request: Mapping[str, Any]) -> Any:
    """The named function's value."""
    return CALLS[request["call"]](*request["arguments"], **request["options"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as replies:  # stdout is for what libraries print
        for line in sys.stdin:
            try:
                value = {"value": answer(json.loads(line))}
            except Exception as error:
                value = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(value), file=replies)
