"""What is not supported, and how users hear of it; `test_refused` tries each, and docs/models.md lists them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.families.catalogue import BY_NAME
from tests.families.family import Family
from tests.families.flows import Flows
from tests.families.tokenizer_files import template

Change = Callable[[Path], None]
"""What makes a model directory one that is refused."""


@dataclass(frozen=True)
class Refusal:
    """Something that is not supported."""

    what: str
    heard: Literal["upload", "job"]
    """When: at the upload of the model, or at the job: asked for, or before its first step."""
    says: str
    """Part of the error."""
    instead: str
    """What to do."""
    attempt: Callable[[Flows, Path], object]


def _changed(flows: Flows, into: Path, change: Change, family: str = "qwen-2.5") -> Path:
    into.mkdir(parents=True)
    for path in flows.base_directory(BY_NAME[family]).iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    change(into)
    return into


def _with(name: str, **values: Any) -> Change:
    """Keys of a file of the directory set, or with None taken away."""

    def change(directory: Path) -> None:
        content = json.loads((directory / name).read_text()) | values
        content = {key: value for key, value in content.items() if value is not None}
        (directory / name).write_text(json.dumps(content))

    return change


def _upload(change: Change, family: str = "qwen-2.5") -> Callable[[Flows, Path], object]:
    return lambda flows, into: flows.site.client.models.upload(_changed(flows, into, change, family))


def _supervised(change: Change, family: str = "qwen-2.5") -> Callable[[Flows, Path], object]:
    def attempt(flows: Flows, into: Path) -> object:
        model = flows.site.client.models.upload(_changed(flows, into, change, family))
        rows = [
            {"prompt": [{"role": "user", "content": "Hi?"}], "completion": [{"role": "assistant", "content": "Hi."}]}
        ]
        data = flows.site.client.datasets.upload(rows)
        return flows.site.run(flows.site.client.jobs.train_supervised(model=model, dataset=data))

    return attempt


def _text_policy(family: Family) -> Callable[[Flows, Path], object]:
    def attempt(flows: Flows, _: Path) -> object:
        jobs, data = flows.site.client.jobs, flows.dataset_id("pairs", family.is_chat)
        return flows.site.run(jobs.train_policy(model=flows.base_id(family), dataset=data, method="dpo"))

    return attempt


def _lora(family: Family, **options: Any) -> Callable[[Flows, Path], object]:
    def attempt(flows: Flows, _: Path) -> object:
        jobs, data = flows.site.client.jobs, flows.dataset_id("pairs", family.is_chat)
        training = {"lora": options}
        return jobs.train_policy(model=flows.base_id(family), dataset=data, method="dpo", training=training)

    return attempt


def _reward(family: Family) -> Callable[[Flows, Path], object]:
    return lambda flows, _: flows.job(family, "reward")


def _nothing(_: Path) -> None:
    pass


def _pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _template_gone(directory: Path) -> None:
    _with("tokenizer_config.json", chat_template=None)(directory)


def _slow(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


REFUSALS = (
    Refusal(
        "An encoder (DeBERTa, ModernBERT) as policy",
        "job",
        "is a reward model; give a causal_lm model",
        "use it as reward model; a policy is a causal language model",
        _text_policy(BY_NAME["deberta-v3"]),
    ),
    Refusal(
        "Models of more than text (Qwen VL, Mistral 3; Gemma 3 is taken), and encoder-decoders (T5, BART)",
        "upload",
        "reads more than text, or has an encoder of its own, which cannot be trained here",
        "upload the language model alone, saved as a `...ForCausalLM` with its tokenizer; where transformers loads it "
        "alone (Qwen 3.5, Llama 4) the error gives the two lines",
        _upload(_with("config.json", architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3")),
    ),
    Refusal(
        "An encoder without a scoring head",
        "upload",
        "architectures in config.json must name one ...ForCausalLM (a policy) or one ...ForSequenceClassification",
        "give one with a head of one label",
        _upload(_with("config.json", architectures=["ModernBertForMaskedLM"])),
    ),
    Refusal(
        "A reward model of an architecture without a classifier in transformers (Granite)",
        "job",
        "is a granite model, of which transformers has no sequence classifier",
        "train the reward model from another family: it reads text or messages with its own tokenizer",
        _reward(BY_NAME["granite-3"]),
    ),
    Refusal(
        "LoRA on the experts of a mixture, which transformers stacks into one tensor",
        "job",
        "the model has no layer gate_proj, up_proj that an adapter can go on",
        "leave `target_modules` out, or name layers of the attention",
        _lora(BY_NAME["qwen-3-moe"], target_modules=["q_proj", "gate_proj", "up_proj"]),
    ),
    Refusal(
        "DoRA and `modules_to_save` as options of a training (adapters made with them elsewhere are taken)",
        "job",
        "training.lora.use_dora: there is no such field",
        "LoRA or rsLoRA on the layers wanted, embeddings and head among them; or all weights",
        _lora(BY_NAME["qwen-2.5"], use_dora=True),
    ),
    Refusal(
        "Models of code of their own, where transformers has no class of that architecture and `model_type`",
        "upload",
        "config.json asks for code of its own (auto_map), which is never run: transformers has no",
        "give a model of an architecture that transformers has; its `auto_map` may stay (Phi 3)",
        _upload(
            _with(
                "config.json",
                architectures=["InternLM2ForCausalLM"],
                model_type="internlm2",
                auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
            )
        ),
    ),
    Refusal(
        "Tokenizers of code of their own (`auto_map` in `tokenizer_config.json`)",
        "upload",
        "tokenizer_config.json asks for code of its own (auto_map), which is never run: without it only "
        "PreTrainedTokenizerFast reads tokenizer.json as it is",
        "where `tokenizer.json` is the whole tokenizer, delete `auto_map`",
        _upload(_with("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]})),
    ),
    Refusal(
        "Quantised weights (GPTQ, AWQ, bitsandbytes, FP8)",
        "upload",
        "config.json describes quantised weights (quantization_config): give the unquantised model",
        "train the unquantised model; quantise what comes back",
        _upload(_with("config.json", quantization_config={"quant_method": "awq", "bits": 4})),
    ),
    Refusal(
        "Messages for a model without a chat template",
        "job",
        "has no chat template",
        "give text, or add the template of the family (`chat_template.jinja`) before the upload",
        _supervised(_template_gone),
    ),
    Refusal(
        "A template that drops what was thought, and begins answers by thinking (DeepSeek R1 and its distillations)",
        "job",
        "does not render prompt and response as a continuation of the prompt",
        "write the answers into the rows with their thoughts, and a template that keeps them",
        _supervised(_with("tokenizer_config.json", chat_template=template("deepseek-r1"))),
    ),
    Refusal(
        "A tokenizer without its fast form (`tokenizer.model` alone)",
        "job",
        "has no tokenizer.json, the fast form",
        "load it where sentencepiece is installed, and save it: that writes `tokenizer.json`",
        _supervised(_slow, "mistral"),
    ),
)
