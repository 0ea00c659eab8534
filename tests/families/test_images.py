"""What a model of text and images has for images: neither trained nor adapted, and as it was in what comes back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.families.catalogue import BY_NAME
from tests.families.flows import Flow, Flows

FAMILY = BY_NAME["gemma-3-vision"]
MERGED = {"policy": None, "policy_lora": "base"}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in directory.glob("*.safetensors") for name, each in load_file(path).items()}


def is_of_text(name: str) -> bool:
    return "language_model" in name or name == "lm_head.weight"


@pytest.mark.parametrize("flow", MERGED)
def test_weights_for_images_come_back_bit_for_bit(flows: Flows, flow: Flow):
    before = weights(flows.base_directory(FAMILY))
    after = weights(flows.download(FAMILY, flow, merged=MERGED[flow]))

    assert after.keys() == before.keys()
    same = {name for name, each in before.items() if torch.equal(after[name].view(torch.int16), each.view(torch.int16))}
    assert {name for name in before if not is_of_text(name)} <= same < before.keys()


def test_an_adapter_holds_layers_of_the_language_model_alone(flows: Flows):
    assert all(".language_model." in name for name in weights(flows.download(FAMILY, "policy_lora")))


@pytest.mark.parametrize("flow", ["policy", "reward"])
def test_the_record_counts_what_text_goes_through(flows: Flows, flow: Flow):
    of_text = sum(each.numel() for name, each in weights(flows.base_directory(FAMILY)).items() if is_of_text(name))
    head = FAMILY.config["text_config"]["hidden_size"] if flow == "reward" else 0

    record = flows.job(FAMILY, flow).result.summary["trained"]

    assert record["parameters"] == record["of_parameters"] == of_text + head
