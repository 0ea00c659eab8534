"""New low-rank adapters on a model's layers."""

from collections.abc import Iterable
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from madpo.adapter_targets import read_by_kernels, require_layers
from madpo.errors import InvalidArgumentError
from madpo.jobs.training import ALL_LINEAR, LoraParameters
from madpo.models.text_part import outside_text

_FIELD = "training.lora"
_HEADS = ("score", "classifier")
"""What peft trains whole beside the adapters of a sequence classifier: all layers whose names end so."""
_ROUTERS = ("gate", "router")
"""What deals tokens to experts, where it is a linear layer of its own. An adapter on it unsettles who gets what."""


def with_adapters(model: Any, lora: LoraParameters, task: TaskType) -> Any:
    """A model whose layers have new adapters, drawn from torch's generator; only they, and a reward head, are trained.

    Raises:
        InvalidArgumentError: A layer that is named is not there, or can get no adapter; names those that can. Or an
            expression for names takes for ever.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_layers(model, lora),
        use_rslora=lora.use_rslora,
        # GPT-2's weights are transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type=task,
        bias="none",
        # A new head is trained whole; as an adapter it would come back random.
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
    )
    try:
        return get_peft_model(model, config)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError.in_field(_FIELD, f"peft cannot adapt these layers: {error}") from error


def target_layers(model: Any, lora: LoraParameters) -> list[str]:
    """What peft is told to adapt: the last parts of the layers' names, or whole names where those would be too many.

    peft's own `all-linear` is not asked: with the experts of a mixture, which transformers stacks into one tensor, it
    takes their router too, and makes whole weights of all experts in every forward pass.
    """
    every = linear_layers(model) | _embeddings(model)
    candidates = every - _outside_text(model) - read_by_kernels(every, dict(model.named_parameters()))
    named = require_layers(lora.target_modules, sorted(candidates), field=f"{_FIELD}.target_modules")
    excluded = require_layers(lora.exclude_modules, sorted(candidates), field=f"{_FIELD}.exclude_modules")
    of_experts = _names_of_experts(model, {_leaf(layer) for layer in candidates})
    if lora.target_modules == (ALL_LINEAR,):
        chosen = (linear_layers(model) & candidates) - _special(model)
        chosen = {layer for layer in chosen if _leaf(layer) not in of_experts}
    else:
        chosen = set(named)
    chosen -= excluded
    if not chosen:
        raise InvalidArgumentError.in_field(_FIELD, "no layer is left to train: exclude_modules takes all of them")
    leaves = {_leaf(layer) for layer in chosen}
    if shared := sorted(leaves & of_experts):
        raise InvalidArgumentError.in_field(
            f"{_FIELD}.target_modules",
            f"{', '.join(shared)}: the model's experts are called so as well, and peft would adapt their stack instead "
            f"(leave them out; {ALL_LINEAR} does)",
        )
    return sorted(leaves if {layer for layer in every if _leaf(layer) in leaves} == chosen else chosen)


def linear_layers(model: nn.Module) -> set[str]:
    """Names of the linear layers; those of GPT-2 are called Conv1D."""
    return {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def _embeddings(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


def _outside_text(model: Any) -> set[str]:
    outside = outside_text(model)
    return {name for name, module in model.named_modules() if module in outside}


def _special(model: Any) -> set[str]:
    """Linear layers that are not meant by all of them: the head, and routers."""
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if module is head or name.partition(".")[0].endswith(_HEADS) or _leaf(name) in _ROUTERS
    }


def _names_of_experts(model: Any, names: Iterable[str]) -> set[str]:
    """Names that peft reads as those of experts, which transformers 5 stacks, wherever in the model a layer has them.

    So a dense layer or a shared expert of the same name cannot be meant, neither here nor by whoever loads the adapter.
    """
    return {name for name in names if not _stays(model, name)}


def _stays(model: Any, name: str) -> bool:
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model=model, conversions=None)
    except ValueError:  # a part of what is stacked, without the other
        return False
    return name in (config.target_modules or ())


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
