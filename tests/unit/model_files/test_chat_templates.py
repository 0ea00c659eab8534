"""Which chat templates a tokenizer has, by its files: those that transformers finds."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from madpo.data.tokenizer import load_tokenizer
from madpo.model_files.chat_templates import renders, template_names

TEMPLATE = "{{ messages }}"
NAMED = [{"name": "rag", "template": TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}]
MORE = "additional_chat_templates/tool_use.jinja"


@pytest.mark.parametrize(
    ("files", "configured"),
    [
        ({}, None),
        ({}, TEMPLATE),
        ({}, NAMED),
        ({}, [*NAMED, {"name": "default", "template": TEMPLATE}]),
        ({"chat_template.jinja": TEMPLATE}, None),
        ({"chat_template.jinja": TEMPLATE, MORE: TEMPLATE}, None),
        ({MORE: TEMPLATE}, None),
        ({MORE: TEMPLATE}, TEMPLATE),
        ({"chat_template.json": json.dumps({"chat_template": TEMPLATE})}, None),
        ({"chat_template.json": json.dumps({"chat_template": TEMPLATE})}, TEMPLATE),
    ],
)
def test_the_templates_are_those_that_transformers_finds(
    tmp_path: Path, files: dict[str, str], configured: object
) -> None:
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if configured is not None:
        config["chat_template"] = configured
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    tokenizer = load_tokenizer(tmp_path)
    paths = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    names = template_names(paths, config)

    found = tokenizer.chat_template
    assert names == set(found if isinstance(found, dict) else ["default"] if found else [])
    for tools in (None, [{"type": "function"}]):
        try:
            tokenizer.get_chat_template(tools=tools)
        except ValueError:
            assert not renders(names, tools=tools is not None)
        else:
            assert renders(names, tools=tools is not None)
