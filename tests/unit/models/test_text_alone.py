"""The advice for models of text and images that are not taken: what it says, followed."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import modeling_auto

from madpo.errors import InvalidArgumentError
from madpo.model_files import configs
from madpo.model_files.configs import model_kind
from madpo.models.load import load_causal_lm

TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
QWEN = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MODELS = {
    "qwen3_5": lambda: transformers.Qwen3_5ForConditionalGeneration(
        transformers.Qwen3_5Config(
            text_config=TEXT | QWEN,
            vision_config={
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": 32,
                "patch_size": 4,
            },
        )
    ),
    "llama4": lambda: transformers.Llama4ForConditionalGeneration(
        transformers.Llama4Config(
            text_config=TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 64},
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        )
    ),
}


def advice(directory: Path) -> str:
    with pytest.raises(InvalidArgumentError, match="reads more than text") as caught:
        model_kind(directory)
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_two_lines_make_the_language_model_alone(tmp_path: Path, name: str):
    torch.manual_seed(0)
    whole = MODELS[name]().eval()
    whole.save_pretrained(tmp_path / "whole")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "whole")
    lines = re.findall(r"^Auto.*save_pretrained\(OUT\)$", advice(tmp_path / "whole"), re.MULTILINE)

    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "AutoTokenizer": AutoTokenizer}
    for line in lines:
        exec(line, names | {"DIR": tmp_path / "whole", "OUT": tmp_path / "alone"})

    assert len(lines) == 2
    assert model_kind(tmp_path / "alone")[0] == "causal_lm"
    assert (tmp_path / "alone" / "tokenizer.json").is_file()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(load_causal_lm(tmp_path / "alone")(ids).logits, whole(input_ids=ids).logits)


def test_others_get_no_lines_that_would_fail(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        '{"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}'
    )

    assert "from_pretrained" not in advice(tmp_path)


def test_models_whose_language_model_can_be_saved_are_those_of_transformers():
    of_images = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    of_language = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert {
        name
        for name, architecture in of_images.items()
        if architecture.endswith("ForConditionalGeneration") and of_language.get(name, "").endswith("ForCausalLM")
    } == configs._TEXT_CAN_BE_SAVED
