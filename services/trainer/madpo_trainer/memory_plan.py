"""What a training will take of a card's memory, told from a model's configuration alone, before there is a card.

The model is built without numbers, and a micro-batch goes forward and back through the code that trains it, while what
is made and not yet gone is counted. What other ranks have of a sharded model is left out, and what is gathered of them
for a block at a time, and for the head, is added.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import TaskType
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from madpo.jobs.training import TrainingParameters
from madpo.losses.method import MethodConfig
from madpo.models.logps import ResponseGroup
from madpo.models.packed.capability import prepare_layout
from madpo.models.packed.head import head_of, token_logps
from madpo.models.packed.layout import PackedRow, pack
from madpo.models.packed.logps import hidden_states
from madpo.models.save import PART_BYTES
from madpo.models.scores import inner_model
from madpo_trainer.adam import most_visiting, remembered_bytes
from madpo_trainer.adapters import with_adapters
from madpo_trainer.blocks import prepare_blocks, transformer_blocks
from madpo_trainer.frozen_base import halve_base
from madpo_trainer.live_memory import LiveMemory
from madpo_trainer.planned_base import loaded_numbers, plan_four_bits
from madpo_trainer.precision import training_autocast
from madpo_trainer.sharding import outer_modules

_GATHERED_BLOCKS = 2
"""The one that computes, and the next one, which is on its way."""
_DEPTHS = (2, 4)
"""Blocks of the models that tell what one of them takes."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on one card at the time when a step takes most, and on a host."""

    weights: int
    """Also those of a reference that moves."""
    gradients: int
    optimizer: int
    gathered: int
    """Of a sharded model: weights of blocks that compute and of the head, their gradients before they are summed."""
    activations: int
    """What the backward pass needs of the forward pass, and what is made on the way."""
    head: int
    """What log-probs need beside it, where that is the time when most is taken."""
    host_load: int
    """In the memory of a host with all of these cards, while the model is loaded."""
    host_save: int
    """In the memory of such a host, for a checkpoint: each rank writes a file at a time."""
    disk_save: int
    """In the scratch directory of such a host, for a checkpoint until it is stored: there is one at a time."""

    @property
    def total(self) -> int:
        """On the card."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.head


def plan_memory(
    config: PreTrainedConfig, parameters: TrainingParameters, *, gpus: int = 1, method: MethodConfig | None = None
) -> MemoryPlan:
    """Plan a training of a causal language model in packed rows.

    Args:
        config: Of the model.
        parameters: Of the job; `auto` precision is bf16.
        gpus: Cards of one host; with more than one and `sharding: fsdp` the model is split over them.
        method: Of preference optimisation; its reference may be a second model.
    """
    if parameters.precision == "auto":
        parameters = parameters.model_copy(update={"precision": "bf16"})
    model = _without_numbers(config, parameters)
    split = {id(each) for module in (*transformer_blocks(model), *outer_modules(model)) for each in module.parameters()}
    ranks = gpus if parameters.sharding == "fsdp" else 1

    def part(of: Iterable[nn.Parameter]) -> int:
        return sum(-(-each.nbytes // ranks) if id(each) in split else each.nbytes for each in of)

    trained = [each for each in model.parameters() if each.requires_grad]
    update = None if method is None else method.reference_update()
    loaded = 4 * loaded_numbers(model)
    weights = part(model.parameters()) + (0 if update is None else _second_model(model, split, ranks))
    remembered = remembered_bytes(model, parameters.optimizer)
    followed = 0 if update is None else loaded * (2 if update.extrapolation else 1)
    saved = sum(each.nbytes for each in trained) + sum(remembered.values()) + followed
    plan = MemoryPlan(
        weights=weights,
        gradients=part(trained),
        optimizer=(
            most_visiting(-(-each.numel() // ranks) if id(each) in split else each.numel() for each in trained)
            if parameters.optimizer.offload
            else sum(-(-size // ranks) if number in split else size for number, size in remembered.items())
        ),
        gathered=_gathered(model, parameters) if ranks > 1 else 0,
        activations=0,
        head=0,
        host_load=loaded if ranks > 1 else gpus * loaded,
        host_save=min(saved, gpus * PART_BYTES),
        disk_save=saved,
    )
    activations, head = _step(config, parameters, is_sharded=ranks > 1).activations_and_head
    return replace(plan, activations=activations, head=head)


def _second_model(model: nn.Module, split: set[int], ranks: int) -> int:
    """Bytes of a reference that moves: in float32, whatever the base of the policy is in."""
    base = [each for name, each in model.named_parameters() if "lora_" not in name]
    return sum(4 * (-(-each.numel() // ranks) if id(each) in split else each.numel()) for each in base)


def _without_numbers(config: PreTrainedConfig, parameters: TrainingParameters) -> Any:
    """The model as it is trained, on no device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if parameters.lora is not None:
            model = with_adapters(model, parameters.lora, TaskType.CAUSAL_LM)
            if parameters.lora.quantize_base is not None:
                plan_four_bits(model, parameters)
            if parameters.precision == "bf16":
                halve_base(model)
    prepare_layout(model, needs_head=True)
    prepare_blocks(model, parameters)
    return model.train()


def _gathered(model: Any, parameters: TrainingParameters) -> int:
    """Weights of two blocks as they are computed with, and the gradients of one, also in float32 to be summed.

    And the head, from its first use to the end of the backward pass.
    """
    width = _width(parameters)

    def gathered(each: nn.Parameter) -> int:
        return width * each.numel() if each.is_floating_point() else each.nbytes

    weights = max(sum(map(gathered, block.parameters())) for block in transformer_blocks(model))
    trained = max(
        sum(each.numel() for each in block.parameters() if each.requires_grad) for block in transformer_blocks(model)
    )
    blocks = _GATHERED_BLOCKS * weights + (width + 4) * trained
    head: nn.Module = inner_model(model).get_output_embeddings()
    of_head = 4 if _is_tied(model) else width
    return blocks + sum(of_head * each.numel() * (2 if each.requires_grad else 1) for each in head.parameters())


def _width(parameters: TrainingParameters) -> int:
    return 2 if parameters.precision == "bf16" else 4


def _is_tied(model: Any) -> bool:
    inner = inner_model(model)
    return bool(inner.get_input_embeddings().weight is inner.get_output_embeddings().weight)


class _Step(NamedTuple):
    """Bytes beside weights, gradients and optimizer in a micro-batch behind another; they grow by so much a block."""

    forward: int
    """The most while blocks compute."""
    kept: int
    """Left for the backward pass."""
    head: int
    """The most while log-probs are computed and go back, with what is kept."""
    backward: int
    """The most while blocks go back."""

    @property
    def activations_and_head(self) -> tuple[int, int]:
        """At the time when most is taken."""
        blocks = max(self.forward, self.backward)
        return (self.kept, self.head - self.kept) if self.head > blocks else (blocks, 0)


def _step(config: PreTrainedConfig, parameters: TrainingParameters, *, is_sharded: bool) -> _Step:
    """Of a model of many like blocks as two with few of them tell: each has the same."""
    depth = config.num_hidden_layers
    if depth <= max(_DEPTHS) or len(set(getattr(config, "layer_types", None) or ())) > 1:
        return _step_of(_without_numbers(config, parameters), parameters, is_sharded=is_sharded)
    few, more = (
        _step_of(_without_numbers(_of_depth(config, layers), parameters), parameters, is_sharded=is_sharded)
        for layers in _DEPTHS
    )
    blocks = (depth - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
    return _Step(*(round(a + (b - a) * blocks) for a, b in zip(few, more, strict=True)))


def _of_depth(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    shallow = deepcopy(config)
    shallow.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        shallow.layer_types = config.layer_types[:layers]
    return shallow


def _step_of(model: Any, parameters: TrainingParameters, *, is_sharded: bool) -> _Step:
    if is_sharded and parameters.precision == "bf16":  # what is gathered is counted elsewhere
        head = [] if _is_tied(model) else [inner_model(model).get_output_embeddings()]
        for module in (*transformer_blocks(model), *head):
            module.to(torch.bfloat16)
    row, inner, mode = pack(list(_groups(parameters))), inner_model(model), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model.to_empty(device="cpu")
        inner.tie_weights()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    live = LiveMemory([*_tensors(model), *(value for value in vars(row).values() if isinstance(value, Tensor))])
    with mode, live:
        return _forward_and_back(inner, row, live, parameters)


def _forward_and_back(inner: Any, row: PackedRow, live: LiveMemory, parameters: TrainingParameters) -> _Step:
    """The head apart from what is before it: what it holds is gone when the backward pass of the others begins."""
    head = head_of(inner)
    assert head is not None, "the layout was refused where there is none"
    with training_autocast("cpu", parameters):
        hidden = hidden_states(inner, row)
        forward, kept = live.start_again(), live.now
        states = hidden.detach().requires_grad_()
        logps, _ = token_logps(head, states.index_select(0, row.predictors), row.targets)
    torch.autograd.backward(logps.sum())
    del logps
    with_head = live.start_again()
    torch.autograd.backward(hidden, states.grad)
    return _Step(forward, kept, with_head, live.most)


def _groups(parameters: TrainingParameters) -> Iterator[ResponseGroup]:
    """Pairs of a full micro-batch: half of `max_tokens` are a prompt's, and each response has the other half."""
    left, longest = parameters.micro_batch_tokens, parameters.max_tokens
    while left > 0:
        tokens = min(longest, max(2, left * 2 // 3)) if left < parameters.micro_batch_tokens else longest
        prompt = tokens // 2
        response = tokens - prompt
        yield ResponseGroup(range(prompt), (range(response), range(1, response + 1)))
        left -= max(3, prompt + 2 * response)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()
