"""Memory that a step of a small model takes on this CPU, in every way to train it."""

from itertools import product

import torch
from peft import TaskType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from madpo.jobs.training import LoraParameters
from madpo.models.packed.attention import use_packed_attention
from madpo.models.packed.logps import PackedLogps
from madpo.models.scores import inner_model
from madpo_trainer.adapters import with_adapters
from madpo_trainer.blocks import prepare_blocks
from madpo_trainer.frozen_base import settle_base
from madpo_trainer.precision import training_autocast

SMALL = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=448,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
)
WAYS = list(product((None, LoraParameters()), (False, True), ("fp32", "bf16")))
NAMES = [f"{'lora' if lora else 'full'}-{'recomputed' if again else 'kept'}-{dtype}" for lora, again, dtype in WAYS]


def small_model(parameters):
    """As it is trained."""
    model = AutoModelForCausalLM.from_config(SMALL)
    if parameters.lora is not None:
        model = with_adapters(model, parameters.lora, TaskType.CAUSAL_LM)
    settle_base(model, parameters, torch.device("cpu"))
    use_packed_attention(inner_model(model))
    prepare_blocks(model.train(), parameters)
    return model


def most_taken(parameters, groups):
    """Bytes that the CPU's allocator gave out at one time in a micro-batch behind another, beside what was there."""
    model = small_model(parameters)

    def micro_batch():
        with training_autocast("cpu", parameters):
            loss = PackedLogps()(model, groups).logps.sum()
        loss.backward()

    micro_batch()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        micro_batch()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
