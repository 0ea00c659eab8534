"""What comes back of a flow, held against what madpo itself makes of it and against the base it was made from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from madpo.data.tokenize import encode_texts, render_chat
from madpo.data.tokenizer import load_tokenizer
from madpo.models.load import load_causal_lm, load_reward_model
from madpo.models.logps import ResponseGroup, padded_logps
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.logps import PackedLogps
from madpo.models.scores import inner_model
from madpo.types import NO_OPTIONS, Content, Message, content_from_json
from madpo_client.merged import MergedDtype
from tests.families.family import Family
from tests.families.flows import BAD, GOOD, NEW_TOKENS, Flow, Flows, contents, scorer_of, scoring_flow

Plain = Callable[..., Any]
"""`plain` in this process, or in one with transformers 4."""

_WEIGHTS = "model.safetensors"

OURS = {"config.json", "adapter_config.json", "model.safetensors", "adapter_model.safetensors", "madpo.json"}
"""Files that a training writes; all others are the base's."""


def near(values: Any) -> Any:
    """Equal to 1e-5 in float32."""
    return pytest.approx(values, rel=1e-5, abs=1e-5)


def kind_of(flow: Flow) -> str:
    """Of the model that a flow leaves."""
    return "reward" if flow.startswith("reward") else "causal_lm"


def base_of(flows: Flows, family: Family, flow: Flow) -> Path | None:
    """The base of what a flow leaves, where that is an adapter."""
    return flows.base_directory(family) if flow.endswith("_lora") else None


def attention(flows: Flows, family: Family, flow: Flow) -> str:
    """By which kernel we run it."""
    load = load_reward_model if kind_of(flow) == "reward" else load_causal_lm
    model = load(flows.download(family, flow), base_directory=base_of(flows, family, flow))
    return str(inner_model(model).config._attn_implementation)


def end_tokens(directory: Path, base: Path | None = None) -> set[int]:
    """Those at which plain transformers stops: of the generation settings, or else of the configuration."""
    settings = directory / "generation_config.json"
    path = settings if settings.is_file() else (base or directory) / "config.json"
    values = json.loads(path.read_text())["eos_token_id"]
    return set(values if isinstance(values, list) else [values])


def attention_asked_for(family: Family) -> dict[str, Any]:
    """What plain transformers is told of it: 4.57 by itself runs Gemma 2 without its cap."""
    return {"attention": "eager"} if family.attention == "eager" else {}


def rows(flows: Flows, family: Family) -> list[list[int]]:
    """Tokens of every question with either response."""
    encoded = [*flows.encode(family, GOOD), *flows.encode(family, BAD)]
    return [each.prompt_ids + each.response_ids for each in encoded]


def texts(flows: Flows, family: Family) -> list[str]:
    """Every question with its good response, rendered where the family has a template."""
    tokenizer = load_tokenizer(flows.base_directory(family))
    return [
        prompt + response
        if isinstance(prompt, str)
        else render_chat(tokenizer, (*prompt, *response), NO_OPTIONS, add_generation_prompt=False)
        for prompt, response in contents(family, GOOD)
    ]


def our_ids(flows: Flows, family: Family, *, special_tokens: bool) -> list[list[int]]:
    """Those of `texts`."""
    tokenizer = load_tokenizer(flows.base_directory(family))
    return encode_texts(tokenizer, texts(flows, family), special_tokens=special_tokens)


def our_values(flows: Flows, family: Family, flow: Flow) -> list[float]:
    """Log-probabilities of the tokens of `rows` in the layout the trainer runs, or the reward service's scores."""
    if kind_of(flow) == "reward":
        model_id = flows.job(family, flow).result.model_id
        return flows.site.score(model_id, [*contents(family, GOOD), *contents(family, BAD)])
    model = load_causal_lm(flows.download(family, flow), base_directory=base_of(flows, family, flow))
    layout = prepare_layout(model, needs_head=True).name
    groups = [ResponseGroup(ids[:1], [ids[1:]]) for ids in rows(flows, family)]
    with torch.no_grad():
        logps = (padded_logps if layout == "padded" else PackedLogps(share=layout == "packed"))(model, groups)
    values: list[float] = logps.token_logps.tolist()
    return values


def ledger_margins(flows: Flows, family: Family, flow: Flow) -> dict[int, float]:
    """By row, the margins that a policy was trained with."""
    ledger = flows.site.client.jobs.ledger(flows.job(family, flow).job_id)
    return {row["row"]: row["reward_margin"] for row in ledger.to_pylist()}


def service_margins(flows: Flows, family: Family, flow: Flow) -> dict[int, float]:
    """By row, those of the reward service."""
    scorer = flows.job(scorer_of(family), scoring_flow(flow)).result.model_id
    chosen, rejected = (flows.site.score(scorer, contents(family, each)) for each in (GOOD, BAD))
    return {row: good - bad for row, (good, bad) in enumerate(zip(chosen, rejected, strict=True), start=1)}


def generations(flows: Flows, family: Family) -> list[dict[str, Any]]:
    """What the evaluation drew and measured, one response after the other; greedy ones first."""
    job = flows.site.client.jobs.get(flows.evaluation(family).job_id)
    return [json.loads(line) for line in job.read_artifact("generations.jsonl").splitlines()]


def plain_answers(flows: Flows, family: Family, plain: Plain) -> list[dict[str, Any]]:
    """What transformers alone answers to every prompt, greedily: the text, its tokens, whether it ended, and its KL."""
    directory, base = flows.download(family, "policy_lora"), flows.base_directory(family)
    prompts, asked = [each.prompt_ids for each in flows.encode(family, GOOD)], attention_asked_for(family)
    # The policy's own distribution is evaluated, without the penalty that a model may bring along.
    greedy = {"max_new_tokens": NEW_TOKENS, "repetition_penalty": 1.0}
    found = plain("generate", str(directory), prompts, base=str(base), **greedy, **asked)
    kl = plain("divergence", str(directory), str(base), prompts, found, **asked)
    tokenizer, ends = load_tokenizer(base), end_tokens(directory, base)
    return [
        {
            "response": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            "tokens": len(ids),
            "finished": ids[-1] in ends,
            "kl": near(value),
        }
        for ids, value in zip(found, kl, strict=True)
    ]


def drawn_texts(flows: Flows, family: Family) -> list[tuple[Content, Content]]:
    """Every prompt of the evaluation with the response that was drawn to it."""
    prompts = [content_from_json(each["prompt"]) for each in generations(flows, family)]
    responses = [each["response"] for each in generations(flows, family)]
    turns = [
        text if isinstance(prompt, str) else (Message("assistant", text),)
        for prompt, text in zip(prompts, responses, strict=True)
    ]
    return list(zip(prompts, turns, strict=True))


def plain_accuracy(flows: Flows, family: Family, plain: Plain) -> float:
    """Share of the pairs whose chosen response gained more on the rejected one by training, by transformers alone."""
    encoded = [*flows.encode(family, GOOD), *flows.encode(family, BAD)]
    ids, base = rows(flows, family), str(flows.base_directory(family))
    asked = attention_asked_for(family)
    policy = plain("measure", str(flows.download(family, "policy_lora")), "causal_lm", ids, base=base, **asked)["alone"]
    reference = plain("measure", base, "causal_lm", ids, **asked)["alone"]
    gains = [
        sum(ours[-len(each.response_ids) :]) - sum(theirs[-len(each.response_ids) :])
        for each, ours, theirs in zip(encoded, policy, reference, strict=True)
    ]
    chosen, rejected = gains[: len(GOOD)], gains[len(GOOD) :]
    return sum(good > bad for good, bad in zip(chosen, rejected, strict=True)) / len(GOOD)


@dataclass(frozen=True)
class PlainValues:
    """The same by transformers alone."""

    alone: list[float]
    """Each row by itself."""
    padded: list[float]
    """All rows in one batch."""


def plain_values(
    flows: Flows, family: Family, flow: Flow, plain: Plain, *, merged: MergedDtype | None = None
) -> PlainValues:
    """What transformers alone makes of the download; an adapter is put on its base by peft, unless it is merged."""
    directory = flows.download(family, flow, merged=merged)
    base = None if merged else base_of(flows, family, flow)
    options: dict[str, Any] = attention_asked_for(family)
    if base is not None:
        # What an adapter's base is padded with is not for the adapter to say: the job's result says it.
        padding = flows.job(family, flow).result.summary["output"].get("pad_token_id")
        options |= {"base": str(base), "padding": None if padding is None else int(padding)}
    found = plain("measure", str(directory), kind_of(flow), rows(flows, family), **options)
    return PlainValues(_flat(found["alone"]), _flat(found["padded"]))


def changed_files(flows: Flows, family: Family, flow: Flow, *, merged: MergedDtype | None = None) -> set[str]:
    """Files of the base that came back otherwise or not at all, and files that nobody asked for."""
    base, back = flows.base_directory(family), flows.download(family, flow, merged=merged)
    kept = {path.name for path in base.iterdir()} - OURS
    if kind_of(flow) == "reward":
        kept.discard("generation_config.json")
    new = {path.name for path in back.iterdir()} - OURS - kept - {"generation_config.json"}
    return new | {name for name in kept if not _same(base / name, back / name)}


def dtypes(directory: Path) -> set[str]:
    """Of the weights in a directory, and as its configuration says it."""
    found = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {str(file.get_tensor(name).dtype).removeprefix("torch.") for name in file.keys()}  # noqa: SIM118
    if (directory / "config.json").exists():
        config = json.loads((directory / "config.json").read_text())
        found.add(config.get("dtype", config.get("torch_dtype")))
    return found


def rounded_otherwise(flows: Flows, family: Family, flow: Flow) -> list[str]:
    """Weights of the adapter merged in the dtype of its base that are not those merged exactly, rounded."""
    exact, rounded = (load_file(flows.download(family, flow, merged=each) / _WEIGHTS) for each in ("exact", "base"))
    dtype = getattr(torch, family.dtype)
    assert exact.keys() == rounded.keys()
    return [name for name, weight in rounded.items() if not torch.equal(weight, exact[name].to(dtype))]


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _flat(values: list[Any]) -> list[float]:
    return [float(value) for row in values for value in (row if isinstance(row, list) else [row])]
