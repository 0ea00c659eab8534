"""Which files of a directory are a model, and which adapters fit it."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import InvalidArgumentError
from madpo.model_files.adapters import check_adapter
from madpo.model_files.configs import model_kind
from madpo.model_files.tensors import TensorInfo, read_tensors
from madpo.model_files.uploads import check_files, files_to_upload
from madpo.model_files.vocabulary import model_warnings

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 4}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.bpe",
    "chat_templates/a.jinja",
)
HARMLESS = (
    *("LICENSE", "LICENSE.txt", "README.md", "USE_POLICY.md", ".gitattributes", ".git/config", ".cache/x.lock"),
    *(
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        "eval_results.json",
    ),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "tf_model.h5", "consolidated.safetensors"),
    *(
        "original/consolidated.00.pth",
        "checkpoint-100/model.safetensors",
        "runs/a/events.out.tfevents.1",
        "onnx/m.onnx",
    ),
    *("tokenizer.model.v3", "tekken.v7", "64.tflite", "onnx.ipynb", "thumbnail.gif", "logo.svg", "rust_model.ot"),
    *("modeling_x.py", "weights.pkl", "data/rows.parquet"),
)


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(directory / "model.safetensors", {"a": (1,)})
    return directory


def add(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"{}")


def test_what_hubs_and_trainers_leave_beside_a_model_is_skipped_and_named(directory: Path) -> None:
    add(directory, *TOKENIZER_FILES, *HARMLESS)

    files = files_to_upload(directory)

    assert set(files.taken) == {"config.json", "model.safetensors", *TOKENIZER_FILES}
    named = {*files.skipped, ".gitattributes", ".git/", ".cache/"}
    assert all(name in named or f"{name.split('/')[0]}/" in named for name in HARMLESS)


def test_all_that_is_broken_is_named_at_once(directory: Path) -> None:
    (directory / "model-2.safetensors").write_bytes(b"torn")
    (directory / "tokenizer.json").symlink_to(directory / "nowhere")

    with pytest.raises(InvalidArgumentError) as caught:
        files_to_upload(directory)

    assert {violation.field for violation in caught.value.violations} == {
        "files.model-2.safetensors",
        "files.tokenizer.json",
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "weights.pkl"])
def test_weights_that_are_there_in_no_other_form_are_named(directory: Path, name: str) -> None:
    (directory / "model.safetensors").unlink()
    add(directory, name, "onnx.ipynb")

    with pytest.raises(InvalidArgumentError, match=rf"{re.escape(name)}.*save them as safetensors") as caught:
        files_to_upload(directory)

    assert [violation.field for violation in caught.value.violations] == [f"files.{name}"]


def _in_shards(directory: Path, *, there: dict[str, tuple[str, ...]], index: Any) -> None:
    (directory / "model.safetensors").unlink()
    for name, tensors in there.items():
        write_safetensors(directory / name, dict.fromkeys(tensors, (1,)))
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("check", [files_to_upload, check_files])
@pytest.mark.parametrize(
    ("there", "field", "complaint"),
    [
        ({"1.safetensors": ("a",)}, "2.safetensors", "is named in model.safetensors.index.json and not there"),
        (
            {"1.safetensors": ("a",), "2.safetensors": ("c",)},
            "2.safetensors",
            r"lacks 1 weight that .* places in it .b.",
        ),
    ],
)
def test_shards_that_are_not_as_their_index_has_them_are_refused(
    directory: Path, check: Any, there: dict[str, tuple[str, ...]], field: str, complaint: str
) -> None:
    _in_shards(directory, there=there, index={"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})

    with pytest.raises(InvalidArgumentError, match=complaint) as caught:
        check(directory)

    assert [violation.field for violation in caught.value.violations] == [f"files.{field}"]


@pytest.mark.parametrize("index", [{}, {"weight_map": ["1.safetensors"]}, {"weight_map": {"a": 1}}, []])
def test_an_index_that_says_nothing_is_refused(directory: Path, index: Any) -> None:
    _in_shards(directory, there={"1.safetensors": ("a",)}, index=index)

    with pytest.raises(InvalidArgumentError, match=r"weight_map|JSON object") as caught:
        files_to_upload(directory)

    assert [violation.field for violation in caught.value.violations] == ["files.model.safetensors.index.json"]


def test_weights_under_names_that_nothing_looks_for_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")

    with pytest.raises(InvalidArgumentError, match=r"nor model\.safetensors\.index\.json.* model-00001-of-00002"):
        files_to_upload(directory)


def test_whole_shards_are_taken_whatever_lies_beside_them(directory: Path) -> None:
    there = {"1.safetensors": ("a",), "2.safetensors": ("b",), "stale.safetensors": ("a",)}
    _in_shards(directory, there=there, index={"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})

    check_files(directory)

    assert {*there, "model.safetensors.index.json"} < {*files_to_upload(directory).taken}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"), ({"architectures": ["BertModel"]}, "BertModel")],
)
def test_a_configuration_is_refused_before_anything_is_sent(directory: Path, config: Any, complaint: str) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | config))

    with pytest.raises(InvalidArgumentError, match=complaint):
        files_to_upload(directory)


def test_code_that_transformers_has_a_class_for_stays_behind_and_is_told(directory: Path) -> None:
    named = {"AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"}
    (directory / "config.json").write_text(json.dumps(CONFIG | {"model_type": "llama", "auto_map": named}))
    add(directory, "modeling_x.py")

    files = files_to_upload(directory)

    assert (files.taken, files.skipped) == (("config.json", "model.safetensors"), ("modeling_x.py",))
    assert "transformers' LlamaForCausalLM is used" in next(model_warnings(directory))


def test_models_of_text_and_images_are_taken_where_they_take_text_alone(directory: Path) -> None:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    (directory / "config.json").write_text(json.dumps(config))

    assert model_kind(directory) == ("causal_lm", "Gemma3ForConditionalGeneration")


def test_others_are_refused_with_the_way_out(directory: Path) -> None:
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    (directory / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidArgumentError, match=r"Mistral3.*more than text.*upload its language model alone"):
        files_to_upload(directory)


# Adapters

BASE = {
    "model.embed_tokens.weight": TensorInfo("BF16", (8, 4)),
    "model.layers.0.self_attn.q_proj.weight": TensorInfo("BF16", (6, 4)),
    "lm_head.weight": TensorInfo("BF16", (8, 4)),
}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q}.lora_A.weight": (2, 4), f"{Q}.lora_B.weight": (6, 2)},
        {f"{Q}.lora_A.weight": (2, 6), f"{Q}.lora_B.weight": (4, 2)},  # GPT-2 keeps weights the other way round
        {f"{Q}.lora_A.weight": (2, 4), "base_model.model.score.weight": (1, 4)},
        {
            "base_model.model.model.embed_tokens.lora_embedding_A": (2, 8),
            "base_model.model.model.embed_tokens.lora_embedding_B": (4, 2),
        },
        {"base_model.model.lm_head.weight": (8, 4), f"{Q}.lora_magnitude_vector.weight": (6,)},
    ],
)
def test_an_adapter_of_the_base_is_taken(tmp_path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)

    check_adapter(tmp_path, BASE)


@pytest.mark.parametrize("in_files", ["language_model.model.", "model.language_model."])
def test_an_adapter_of_the_text_of_a_model_of_text_and_images_is_taken(tmp_path: Path, in_files: str) -> None:
    base = {f"{in_files}layers.0.self_attn.q_proj.weight": TensorInfo("BF16", (6, 4))}
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    write_safetensors(tmp_path / "adapter_model.safetensors", {f"{layer}.lora_A.weight": (2, 4)})

    check_adapter(tmp_path, base)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({f"{Q}.lora_A.weight": (2, 5)}, r"q_proj.*\[2, 5\].*\[6, 4\].*base it was trained on"),
        ({f"{Q}.lora_B.weight": (9, 2)}, r"q_proj.*\[9, 2\].*\[6, 4\]"),
        ({"base_model.model.model.embed_tokens.weight": (10, 4)}, r"\[10, 4\].*\[8, 4\].*vocabulary extended"),
        ({"base_model.model.lm_head.weight": (10, 4)}, r"lm_head.*\[10, 4\].*vocabulary extended"),
        ({"base_model.model.h.0.attn.c_attn.lora_A.weight": (2, 4)}, "none of its layers"),
    ],
)
def test_an_adapter_of_another_base_is_refused_with_both_shapes(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], complaint: str
) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)

    with pytest.raises(InvalidArgumentError, match=complaint):
        check_adapter(tmp_path, BASE)


def test_an_adapter_in_shards_is_refused_with_what_is_there(tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_A.weight": (2, 4)}
    write_safetensors(tmp_path / "adapter_model-00001-of-00002.safetensors", tensors)

    with pytest.raises(InvalidArgumentError, match=r"adapter_model\.safetensors is missing.*00001-of-00002"):
        check_adapter(tmp_path, BASE)


def test_tensors_are_read_from_their_headers(directory: Path) -> None:
    write_safetensors(directory / "b.safetensors", {"x": (2, 3), "y": ()})

    tensors = read_tensors(directory)

    assert tensors == {"a": TensorInfo("F32", (1,)), "x": TensorInfo("F32", (2, 3)), "y": TensorInfo("F32", ())}


# Vocabularies


@pytest.mark.parametrize("form", ["bpe", "unigram"])
def test_a_tokenizer_of_another_model_is_refused(directory: Path, form: str) -> None:
    vocabulary = {"a": 0, "b": 4} if form == "bpe" else [["a", 0.0]] * 5
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))

    with pytest.raises(InvalidArgumentError, match=r"1 token .*largest id is 4, vocab_size in config.json 4"):
        list(model_warnings(directory))


def test_added_tokens_without_embedding_are_counted(directory: Path) -> None:
    added = [{"id": 3, "content": "<pad>"}, {"id": 4, "content": "<tool>"}]
    tokenizer = {"model": {"vocab": {"a": 0, "<tool>": 4}}, "added_tokens": added}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))

    assert [warning.split(":")[0] for warning in model_warnings(directory)] == [
        "1 added token without an embedding (vocab_size is 4)"
    ]


def test_an_end_of_text_that_the_vocabulary_lacks_is_told(directory: Path) -> None:
    (directory / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "</s>"}]})
    )

    def told(**config: Any) -> list[str]:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        return list(model_warnings(directory))

    assert told(eos_token="</s>", bos_token={"content": "a"}, pad_token="<new>") == []
    assert told(eos_token="<new>", added_tokens_decoder={"3": {"content": "<new>"}}) == []
    (warning,) = told(eos_token={"content": "<new>"}, bos_token=None)
    assert warning.startswith(
        "eos_token '<new>' in tokenizer_config.json is not in tokenizer.json: transformers adds it"
    )


def test_a_padding_token_without_embedding_is_told(directory: Path) -> None:
    for padding, warnings in ((3, 0), (4, 1)):
        (directory / "config.json").write_text(json.dumps({"vocab_size": 4, "pad_token_id": padding}))

        assert len(list(model_warnings(directory))) == warnings


def test_a_reward_model_that_pads_with_eos_is_read_otherwise_by_others(directory: Path) -> None:
    config = {"architectures": ["LlamaForSequenceClassification"], "eos_token_id": [1, 2], "pad_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config))

    assert "madpo scores the EOS" in next(model_warnings(directory))
