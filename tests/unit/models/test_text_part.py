"""What of a model text goes through."""

import pytest
import transformers

from madpo.models.text_part import freeze_outside_text, outside_text, text_parameters

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**SIZE, "vocab_size": 50, "num_key_value_heads": 1, "head_dim": 8}
VISION = {**SIZE, "image_size": 16, "patch_size": 4}
OF_TEXT = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, vocab_size=50)),
    "gemma 3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT)),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZE, vocab_size=50)),
    "bart": lambda: transformers.BartForSequenceClassification(
        transformers.BartConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50, max_position_embeddings=32
        )
    ),
}


def gemma_of_images(auto):
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, num_labels=1)
    return auto.from_config(config)


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_model_of_text_has_nothing_outside(name):
    model = OF_TEXT[name]()

    freeze_outside_text(model)

    assert outside_text(model) == set()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(text_parameters(model)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "auto", [transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification], ids=["lm", "reward"]
)
def test_an_image_encoder_and_its_projection_are_frozen(auto):
    model = gemma_of_images(auto)

    freeze_outside_text(model)

    frozen = {name.split(".")[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert frozen == {"vision_tower", "multi_modal_projector"}
    assert trained == {"language_model", "weight"} - (
        {"weight"} if auto is transformers.AutoModelForCausalLM else set()
    )
    assert len(text_parameters(model)) == sum(parameter.requires_grad for parameter in model.parameters())
