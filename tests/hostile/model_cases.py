"""Model folders of no good will: what is done to a good one, and what has to be said of it at upload."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Harm = Callable[[Path], object]


@dataclass(frozen=True)
class ModelCase:
    """A harm done to a good reward model's folder."""

    name: str
    harm: Harm
    reason: str
    """What the message must say, as a regular expression."""


def model_cases() -> list[ModelCase]:
    """All of them."""
    makers = (size_cases, config_cases, weight_cases, template_cases, tokenizer_cases, adapter_cases)
    return [case for maker in makers for case in maker()]


def edit(path: Path, **values: Any) -> None:
    """Set values of a JSON file; those that are None are taken out."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value is not None}))


def configured(**values: Any) -> Harm:
    return lambda directory: edit(directory / "config.json", **values)


def written(name: str, content: bytes) -> Harm:
    return lambda directory: (directory / name).write_bytes(content)


def size_cases() -> Iterator[ModelCase]:
    """Numbers by which a model is built before its weights are read."""
    sizes = {
        "num_hidden_layers": 10**7,
        "vocab_size": 10**9,
        "hidden_size": 10**9,
        "intermediate_size": 10**12,
        "num_attention_heads": 10**8,
        "num_key_value_heads": 10**8,
        "head_dim": 10**9,
        "n_positions": 10**9,
        "num_local_experts": 10**7,
        "num_labels": 10**9,
    }
    for key, size in sizes.items():
        yield ModelCase(f"size: {key}", configured(**{key: size}), rf"{key} is {size}, its weights have room for")
    yield ModelCase("size: positions", configured(max_position_embeddings=10**12), "max_position_embeddings is 10{12}")
    yield ModelCase("size: of 400 digits", configured(hidden_size=10**400), r"hidden_size is 10{39}, its weights")
    nested = configured(text_config={"num_hidden_layers": 10**7})
    yield ModelCase("size: of the text model", nested, r"text_config.num_hidden_layers is 10{7}")
    for what, value in {"negative": -1, "a text": "2", "a fraction": 2.5, "true": True}.items():
        yield ModelCase(
            f"size: {what}", configured(num_hidden_layers=value), "num_hidden_layers must be a whole number"
        )
    yield ModelCase("size: of 5000 layers", configured(num_key_value_heads=[4] * 5000), "5000 entries, at most 4096")
    together = configured(hidden_size=1024, intermediate_size=1024, num_hidden_layers=1024, vocab_size=1024)
    yield ModelCase("size: all together", together, r"has over 107\d+ weights, stored are \d+")


def config_cases() -> Iterator[ModelCase]:
    """Configurations that are none, or ask for what is not given."""
    name = "config.json"
    yield ModelCase("config: absent", lambda directory: (directory / name).unlink(), "no config.json")
    yield ModelCase("config: empty", written(name, b""), "config.json is not JSON")
    yield ModelCase("config: a list", written(name, b"[]"), "config.json is not a JSON object")
    yield ModelCase("config: nested deeply", written(name, b'{"a":' * 100_000), "config.json is not JSON")
    yield ModelCase("config: no UTF-8", written(name, b'{"a": "\xff"}'), "config.json is not JSON")
    yield ModelCase("config: of 17 MB", written(name, b" " * (17 << 20)), "config.json is larger than")
    code = {"AutoModelForSequenceClassification": "x--y.Z"}
    unknown = configured(auto_map=code, model_type="lama")
    yield ModelCase("config: code of an unknown type", unknown, "asks for code .* transformers has no lama models")
    unlike = configured(auto_map=code, architectures=["MyLlamaForSequenceClassification"])
    yield ModelCase("config: code of another class", unlike, "transformers has .*LlamaForSequenceClassification, and")
    listed = configured(auto_map=code, model_type=["llama"])
    yield ModelCase("config: code, a type that is a list", listed, r"transformers has no \['llama'\] models")
    part = configured(text_config={"auto_map": code})
    yield ModelCase("config: code of a part", part, r"asks for code of its own \(auto_map\)")
    hidden = configured(rope_scaling={"trust_remote_code": True})
    yield ModelCase("config: code within", hidden, r"asks for code of its own \(trust_remote_code\)")
    quantised = configured(quantization_config={"quant_method": "x"})
    yield ModelCase("config: quantised", quantised, "describes quantised weights")
    kernel = configured(_attn_implementation="somebody/kernel")
    yield ModelCase("config: a kernel from elsewhere", kernel, "unknown _attn_implementation 'somebody/kernel'")
    for what, value in {"none": [], "two": ["AForCausalLM", "BForCausalLM"], "a text": "LlamaForCausalLM"}.items():
        yield ModelCase(
            f"config: architectures, {what}", configured(architectures=value), "architectures in config.json"
        )
    images = configured(architectures=["LlavaForConditionalGeneration"])
    yield ModelCase("config: reads images", images, "reads more than text")


def weight_cases() -> Iterator[ModelCase]:
    """Weights that are none, or lie about themselves."""
    name = "model.safetensors"
    yield ModelCase("weights: none", lambda directory: (directory / name).unlink(), "no .safetensors file")
    pickled = lambda directory: (directory / name).rename(directory / "pytorch_model.bin")  # noqa: E731
    yield ModelCase("weights: a pickle", pickled, "save them as safetensors|no .safetensors file")
    yield ModelCase("weights: empty", written(name, b""), "header of 0 bytes in a file of 0")
    endless = struct.pack("<Q", 1 << 62) + b"{}"
    yield ModelCase("weights: an endless header", written(name, endless), f"header of {1 << 62} bytes")
    yield ModelCase("weights: a header that is no JSON", written(name, header(b"{{{{")), "header cannot be read")
    yield ModelCase("weights: a header of lists", written(name, header(b"[[]]")), "header cannot be read")
    yield ModelCase("weights: nested deeply", written(name, header(b'{"a":' * 100_000)), "header cannot be read")
    yield ModelCase("weights: cut", lambda directory: cut(directory / name), "data does not fill the file")
    lies = {
        "a shape beyond its bytes": ({"a": ("F32", [10**9], 0, 4)}, "shape of a does not fit its bytes"),
        "a negative shape": ({"a": ("F32", [-1, -1], 0, 4)}, "shape of a does not fit its bytes"),
        "an unknown dtype": ({"a": ("X1", [10**9], 0, 4)}, "shape of a does not fit its bytes"),
        "a shape without end": ({"a": ("F32", [float("inf")], 0, 4)}, "header cannot be read"),
        "an overlap": ({"a": ("F32", [1], 0, 4), "b": ("F32", [1], 2, 6)}, "a gap or an overlap"),
        "a gap": ({"a": ("F32", [1], 4, 8)}, "a gap or an overlap"),
    }
    for what, (tensors, reason) in lies.items():
        yield ModelCase(f"weights: {what}", written(name, safetensors(tensors)), reason)


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def safetensors(tensors: dict[str, tuple[str, list[int], int, int]]) -> bytes:
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        for name, (dtype, shape, begin, end) in tensors.items()
    }
    return header(json.dumps(entries).encode()) + bytes(max(end for *_, end in tensors.values()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def template_cases() -> Iterator[ModelCase]:
    """Templates that cannot be read; those that can are for who renders them."""
    name = "chat_template.jinja"
    cases = {
        "empty": (b" \n", "the chat template is empty"),
        "no UTF-8": (b"\xff", "not UTF-8 text"),
        "no jinja": (b"{% if %}", "no jinja"),
        "of 300 kB": (b"x" * 300_000, "has 300000 characters"),
        "of 20 MB": (b"x" * 20_000_000, "more than 1048576 bytes"),
        "a number of 5000 digits": (b"{{ " + b"9" * 5000 + b" }}", "no jinja"),
        "nested deeply": (b"{{" + b"(" * 50_000, "nested too deeply|no jinja"),
    }
    for what, (content, reason) in cases.items():
        yield ModelCase(f"template: {what}", written(name, content), reason)
    number = partial(edit_template, 7)
    yield ModelCase("template: a number", number, "the chat template must be text")
    yield ModelCase("template: one of several", partial(edit_template, [{"name": "a", "template": 7}]), "must be text")


def edit_template(value: Any, directory: Path) -> None:
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    edit(directory / "tokenizer_config.json", chat_template=value)


def tokenizer_cases() -> Iterator[ModelCase]:
    """Tokenizers that cannot be those of the model."""
    name = "tokenizer.json"
    yield ModelCase("tokenizer: no JSON", written(name, b"{"), "tokenizer.json cannot be read")
    yield ModelCase("tokenizer: a list", written(name, b"[]"), "tokenizer.json cannot be read")
    beyond = written(name, json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 10**6}}}).encode())
    yield ModelCase(
        "tokenizer: tokens beyond the embeddings", beyond, "tokenizer.json has 1 token without an embedding"
    )
    endless = written(name, b'{"added_tokens": [{"id": 1e999, "content": "a"}]}')
    yield ModelCase("tokenizer: an id without end", endless, "tokenizer.json cannot be read")
    for tokenizer_class in ("LlamaTokenizer", "XTokenizer", ["X"], None):
        settings = {"auto_map": {"AutoTokenizer": ["x.Y", None]}, "tokenizer_class": tokenizer_class}
        code = partial(edit, **settings)
        yield ModelCase(
            f"tokenizer: code of {tokenizer_class}",
            lambda directory, code=code: code(directory / "tokenizer_config.json"),
            "asks for code of its own .* tokenizer_class is",
        )


def adapter_cases() -> Iterator[ModelCase]:
    """Adapters whose numbers do not fit their weights."""
    for what, values in {"rank": {"r": 10**9}, "a rank": {"r": 8, "rank_pattern": {"q_proj": 10**9}}}.items():
        yield ModelCase(f"adapter: {what}", partial(make_adapter, values), "is 10{9}, its weights have room for")
    bomb = "(([a-z_.0-9]+)+)+!"
    for field, value in {"rank_pattern": {bomb: 8}, "alpha_pattern": {bomb: 8}, "layers_pattern": [bomb]}.items():
        yield ModelCase(f"adapter: an exploding {field}", partial(make_adapter, {field: value}), f"{field} must be")
    saved = partial(make_adapter, {"modules_to_save": [bomb]})
    yield ModelCase("adapter: an exploding modules_to_save", saved, "modules_to_save must be names of layers")
    again = partial(make_adapter, {"layer_replication": [[0, 10**7]]})
    yield ModelCase("adapter: layers again and again", again, "layer_replication is not read")
    yield ModelCase("adapter: no LoRA", partial(make_adapter, {"peft_type": "X"}), "peft_type must be LORA")


def make_adapter(values: dict[str, Any], directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    edit(directory / "adapter_config.json", **{"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 8, **values})
