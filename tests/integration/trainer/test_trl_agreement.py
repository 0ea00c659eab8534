"""Where TRL has a loss of ours: the same model, reference and batch give the same loss and gradients."""

import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from madpo.data.collate import PairBatch, ResponseBatch, collate_pairs
from madpo.data.tokenize import encode_response
from madpo.losses.method import LossBatch
from madpo.losses.registry import METHODS, parse_params
from madpo.models.logps import row_logps
from tests.integration.trainer.trl_cases import CASES, TOLERANCE, VERSION, Case, TrainerName
from tests.unit.losses.batches import train_step

if find_spec("trl") is None and not os.environ.get("CI"):
    pytest.skip("TRL is not installed: pip install -c constraints.txt '.[trl]'", allow_module_level=True)

pytestmark = [
    pytest.mark.methods,
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'", "ignore::FutureWarning"),
]

PACKAGES: dict[TrainerName, str] = {
    "DPO": "trl",
    "KTO": "trl",
    "CPO": "trl.experimental.cpo",
    "ORPO": "trl.experimental.orpo",
    "TPO": "trl.experimental.tpo",
}
# Chosen longer, rejected longer, and both as long.
ROWS = (
    ("the film", "was good . the film was good .", "was bad .", "good film ."),
    ("film", "good .", "the film was bad bad bad .", "the film was good ."),
    ("was the film good", "the film was good .", "bad was the film .", "good ."),
    ("the", "film was good good good .", "bad .", "good good ."),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)


class Pair(NamedTuple):
    """A policy and its reference, of different weights."""

    policy: nn.Module
    reference: nn.Module


class Result(NamedTuple):
    loss: Tensor
    gradient: Tensor
    """Of all parameters."""


@pytest.fixture(scope="module")
def tokenizer(make_toy_tokenizer: Callable[..., Any]) -> Any:
    return make_toy_tokenizer()


@pytest.fixture(scope="module")
def models(make_toy_lm: Callable[..., Any]) -> Pair:
    policy = make_toy_lm(seed=1, spread=0.2).double()
    reference = deepcopy(policy)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return Pair(policy, reference)


class TheirStep:
    """A trainer of TRL with its own model copies, and the batch its own tokenization and collator make of `ROWS`."""

    def __init__(self, case: Case, models: Pair, tokenizer: Any, directory: Path) -> None:
        from datasets import Dataset

        package = import_module(PACKAGES[case.trainer])
        self.models = deepcopy(models)
        config = getattr(package, f"{case.trainer}Config")(
            output_dir=str(directory),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            max_length=64,
            per_device_train_batch_size=2 * len(ROWS),
            **case.options,
        )
        columns = {
            "prompt": [prompt for prompt, *_ in ROWS],
            "chosen": [f" {chosen}" for _, chosen, _, _ in ROWS],
            "rejected": [f" {rejected}" for _, _, rejected, _ in ROWS],
        }
        if case.trainer == "TPO":
            columns["reference"] = [f" {gold}" for _, _, _, gold in ROWS]
        has_reference = case.trainer in ("DPO", "KTO")
        self.trainer = getattr(package, f"{case.trainer}Trainer")(
            model=self.models.policy,
            args=config,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            **({"ref_model": self.models.reference} if has_reference else {}),
        )
        self.inputs = self.trainer.data_collator(list(self.trainer.train_dataset))

    def result(self) -> Result:
        loss = self.trainer.compute_loss(self.models.policy, self.inputs)
        return _result(loss, self.models.policy)

    def pairs(self) -> PairBatch:
        """The batch's 2N rows of chosen and rejected responses."""
        inputs = self.inputs
        if "chosen_input_ids" in inputs:
            joined = self.trainer.concatenated_inputs(inputs, padding_value=0)
            ids, attention, labels = (
                joined[f"concatenated_{name}"] for name in ("input_ids", "attention_mask", "labels")
            )
            return PairBatch(ids, attention, labels != -100)
        rows = PairBatch(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"].bool())
        if "label" in inputs:
            return PairBatch(*_rows(rows, (~inputs["label"]).int().argsort(stable=True)))
        return PairBatch(*_rows(rows, slice(2 * len(ROWS))))

    def gold(self) -> ResponseBatch:
        inputs = self.inputs
        rows = ResponseBatch(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"].bool())
        return ResponseBatch(*_rows(rows, slice(2 * len(ROWS), None)))

    def mismatched(self) -> ResponseBatch:
        names = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
        ids, attention, completion = (self.inputs[name] for name in names)
        return ResponseBatch(ids, attention, completion.bool())


def _rows(batch: ResponseBatch, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
    return batch.input_ids[rows], batch.attention_mask[rows], batch.response_mask[rows]


def _result(loss: Tensor, model: nn.Module) -> Result:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        (torch.zeros_like(parameter) if gradient is None else gradient).flatten().double()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return Result(loss.detach().double(), torch.cat(flat))


def our_result(case: Case, models: Pair, theirs: TheirStep, params: Mapping[str, Any]) -> Result:
    """Loss and gradient by our log-probs and our loss, of TRL's rows."""
    method, config = METHODS[case.method], parse_params(case.method, params)
    rows = theirs.pairs()
    policy = row_logps(models.policy, rows)
    with torch.no_grad():
        reference = row_logps(models.reference, rows)
    logps, ref_logps, tokens = (values.chunk(2) for values in (policy.logps, reference.logps, policy.tokens))
    batch = LossBatch(
        policy_chosen_logps=logps[0],
        policy_rejected_logps=logps[1],
        ref_chosen_logps=ref_logps[0],
        ref_rejected_logps=ref_logps[1],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )
    requirements = method.requirements(config)
    if requirements.token_logps:
        batch = replace(batch, **token_fields(models, rows))
    if requirements.gold:
        gold = row_logps(models.policy, theirs.gold())
        batch = replace(batch, gold_logps=gold.logps, gold_tokens=gold.tokens)
    if requirements.mismatched:
        batch = replace(batch, **mismatched_fields(models, theirs.mismatched()))
    loss = train_step(method, config, batch).loss
    if case.prompt_nll:
        loss = loss + prompt_nll(models.policy, rows)
    return _result(case.factor * loss, models.policy)


def token_fields(models: Pair, rows: PairBatch) -> dict[str, Tensor]:
    """What `LossBatch` says of single tokens, by the book: a log-softmax over the vocabulary."""
    fields = {}
    mask = rows.response_mask[:, 1:]
    # Prompts differ in length: responses move to the front.
    order = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(dim=1).max())]
    for prefix, model in (("", models.policy), ("ref_", models.reference)):
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
        log_p = logits.log_softmax(dim=-1)
        token_logps = log_p.gather(2, rows.input_ids[:, 1:, None]).squeeze(2).gather(1, order)
        log_sum_p2 = (2 * log_p.detach()).logsumexp(dim=-1).gather(1, order)
        for side, half in (("chosen", slice(len(ROWS))), ("rejected", slice(len(ROWS), None))):
            fields[f"{prefix}{side}_token_logps"] = token_logps[half]
            if not prefix:
                fields[f"{side}_log_sum_p2"] = log_sum_p2[half]
                fields[f"{side}_token_mask"] = mask.gather(1, order)[half]
    return fields


@torch.no_grad()
def mismatched_fields(models: Pair, rows: ResponseBatch) -> dict[str, Tensor]:
    """TRL's 2N mismatched responses, two to a pair: the loss asks for their mean alone."""
    halves = (row_logps(model, rows).logps.chunk(2) for model in models)
    policy, reference = ((first + second) / 2 for first, second in halves)
    assert (policy - reference).mean() > 0.1, "a reference point of 0 says nothing"
    return {"mismatched_logps": policy, "ref_mismatched_logps": reference}


def prompt_nll(policy: nn.Module, rows: PairBatch) -> Tensor:
    """By how much the token-averaged likelihood changes when it counts the chosen rows' prompts in."""
    chosen = ResponseBatch(*_rows(rows, slice(len(ROWS))))
    responses = row_logps(policy, chosen)
    whole = row_logps(policy, replace(chosen, response_mask=chosen.attention_mask.bool()))
    return responses.token_logps.mean() - whole.token_logps.mean()


def agree(ours: Result, theirs: Result, tolerance: float) -> bool:
    """Loss and gradient within a relative tolerance, each entry of the gradient in relation to the largest."""
    loss_error = (ours.loss - theirs.loss).abs() / theirs.loss.abs()
    largest = theirs.gradient.abs().max()
    assert largest > 1e-3, "the comparison says nothing where there is no gradient"
    gradient_error = (ours.gradient - theirs.gradient).abs().max() / largest
    print(f"relative error of the loss {loss_error:.1e}, of the gradient {gradient_error:.1e}")
    return bool(loss_error <= tolerance and gradient_error <= tolerance)


@cases
def test_loss_and_gradient_agree(case: Case, models: Pair, tokenizer: Any, tmp_path: Path) -> None:
    theirs = TheirStep(case, models, tokenizer, tmp_path)
    expected = theirs.result()

    assert agree(our_result(case, models, theirs, case.params), expected, TOLERANCE[case.trainer])

    strength = "lam" if case.method == "orpo" else "beta"
    config = parse_params(case.method, case.params)
    off = {**case.params, strength: 1.01 * getattr(config, strength)}
    assert not agree(our_result(case, models, theirs, off), expected, TOLERANCE[case.trainer]), "1 % goes unnoticed"


def test_both_make_the_same_rows(models: Pair, tokenizer: Any, tmp_path: Path) -> None:
    encoded = [
        tuple(encode_response(tokenizer, prompt, f" {text}") for text in (chosen, rejected))
        for prompt, chosen, rejected, _ in ROWS
    ]
    ours = collate_pairs(encoded, pad_id=tokenizer.pad_token_id)

    theirs = TheirStep(CASES[0], models, tokenizer, tmp_path).pairs()

    for name in ("input_ids", "attention_mask", "response_mask"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_no_loss_of_their_dpo_trainer_is_left_out() -> None:
    from trl import DPOConfig

    (loss_type,) = (entry for entry in dataclass_fields(DPOConfig) if entry.name == "loss_type")
    theirs = set(re.findall(r"`'(\w+)'`", loss_type.metadata["help"]))

    compared = {name for case in CASES if case.trainer == "DPO" for name in case.options.get("loss_type", ())}

    assert compared == theirs


def test_the_version_is_the_one_compared() -> None:
    import trl

    assert trl.__version__ == VERSION
