"""What the report says once a tokenizer and a chat template have looked at the rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from madpo.data.check.check import DatasetCheck
from madpo.data.check.report import CheckReport
from madpo.data.check.tokens import TokenCheck
from madpo.types import ChatOptions, Completion, DatasetRow, Message, PreferencePair
from madpo_client.cli import app

pytestmark = pytest.mark.data

Save = Callable[..., Path]

MARKS = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {{ eos_token }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}<assistant> {% endif %}"
TOOLS = "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}"


def user(text: str = "the film") -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def pair(row: int = 1, *prompt: Message, **changes: Any) -> PreferencePair:
    contents = {
        "prompt": prompt or (user(),),
        "chosen": (assistant("was good"),),
        "rejected": (assistant("was bad ."),),
    }
    return PreferencePair(**(contents | changes), row=row)


def check(directory: Path, *rows: DatasetRow, **options: Any) -> CheckReport:
    checked = DatasetCheck()
    tokens = TokenCheck(directory, checked.findings, **({"model": "toy", "max_tokens": 64, "workers": 1} | options))
    for row, encoded in tokens.watch(checked.watch(rows)):
        assert encoded is None or row.row == encoded.row
    return checked.report("rows", tokens=tokens.figures())


def failed(report: CheckReport) -> list[str]:
    assert report.tokens is not None
    return [tried.name for tried in report.tokens.template if not tried.passed]


def test_a_sound_template_and_short_rows_are_clean(tokenizer_directory: Save) -> None:
    report = check(tokenizer_directory(), pair(), pair(2, user("film . film")))

    assert report.findings == ()
    assert report.verdict == "clean"
    assert failed(report) == []
    tokens = report.tokens
    assert tokens is not None
    assert (tokens.model, len(tokens.template_sha256), len(tokens.tokenizer_sha256)) == ("toy", 64, 64)
    assert (tokens.lengths["prompt"].smallest, tokens.lengths["prompt"].largest) == (6, 7)
    assert (tokens.lengths["chosen"].largest, tokens.lengths["rejected"].largest) == (3, 4)
    assert (tokens.lengths["sequence"].smallest, tokens.lengths["sequence"].largest) == (10, 11)
    assert tokens.shared_response_prefix is not None
    assert tokens.shared_response_prefix.mean == 1
    assert tokens.length_bias is not None
    assert tokens.length_bias.longer_chosen_ratio == 0


def test_a_tokenizer_class_that_cuts_text_otherwise_than_its_file_is_a_warning(tokenizer_directory: Save) -> None:
    directory = tokenizer_directory()
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"}))

    (finding,) = [each for each in check(directory, pair()).findings if each.code == "other_cut"]

    assert finding.severity == "warning"
    assert "transformers reads the tokenizer as BertTokenizer, which cuts " in finding.title
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in finding.advice


BROKEN = {
    "two BOS": ("{{ bos_token }} {{ bos_token }}" + MARKS + OPENS, "doubled_bos", "one BOS"),
    "two EOS": (
        "{{ bos_token }}" + MARKS.replace("{% endfor", "{{ ' </s>' if m['role'] == 'assistant' }}{% endfor") + OPENS,
        "doubled_eos",
        "one EOS",
    ),
    "no EOS": ("{{ bos_token }}" + MARKS.replace("{{ eos_token }}", "") + OPENS, "no_end", "one EOS"),
    "always opens": (
        "{{ bos_token }}" + MARKS + "<assistant> ",
        "no_end",
        "no generation prompt behind a response",
    ),
    "forgets": (
        "{{ bos_token }}" + MARKS.replace("messages", "messages[-3:]") + OPENS,
        "prompt_not_prefix",
        "keeps what is said",
    ),
    "no system": (
        "{{ bos_token }}" + MARKS.replace("in messages", "in messages if m['role'] != 'system'") + OPENS,
        "dropped_content",
        "keeps the system message",
    ),
    "refuses system": (
        "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}" + MARKS + OPENS,
        "template_refuses",
        "keeps the system message",
    ),
    "thinks": (
        MARKS + "{% if add_generation_prompt %}<assistant> bad {% endif %}",
        "prompt_not_prefix",
        "prompt is a prefix",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_template_is_found_in_rows_and_by_trying_it(tokenizer_directory: Save, name: str) -> None:
    template, code, failing = BROKEN[name]
    row = pair(1, Message("system", "film"), user("the film"), assistant("was bad"), user("good"))

    report = check(tokenizer_directory(template=template), row)

    found = {finding.code: finding for finding in report.findings}
    assert found[code].rows == (1,)
    assert failing in failed(report)
    assert any(f"chat template, {failing}" in finding.title for finding in report.findings)
    assert report.verdict == ("warnings" if name in ("no EOS", "no system") else "refused")


TURN = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <unk> {% endfor %}" + OPENS


@pytest.mark.parametrize(("configured", "named"), [(2, False), ([2, 3], True)])
@pytest.mark.parametrize("template", [TURN, TURN + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"])
def test_a_turns_end_at_which_generation_does_not_stop_is_said(
    tokenizer_directory: Save, template: str, configured: Any, named: bool
) -> None:
    directory = tokenizer_directory(template=template)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))

    report = check(directory, pair())

    assert ("one EOS" in failed(report)) is not named
    titles = [finding.title for finding in report.findings]
    assert named is not any("ends with <unk>, at which generation does not stop" in title for title in titles)


def test_a_prompt_that_is_no_prefix_is_shown_token_by_token(tokenizer_directory: Save) -> None:
    report = check(tokenizer_directory(template=BROKEN["thinks"][0]), pair())

    mismatch = next(finding for finding in report.findings if finding.code == "prompt_not_prefix")
    assert mismatch.example.splitlines() == [
        "token 5, behind",
        "    both    ... '<user>' 'the' 'film' '</s>' '<assistant>'",
        "  - prompt  'bad'",
        "  + whole   'was' 'good' '</s>'",
    ]


def test_tools_that_a_template_does_not_show_are_an_error(tokenizer_directory: Save) -> None:
    schema = {"type": "function", "function": {"name": "film", "parameters": {}}}
    options = ChatOptions(tools=json.dumps([schema]))

    blind = check(tokenizer_directory(), pair(1, options=options), pair(2, user("good . good")))
    seeing = check(tokenizer_directory(template="{{ bos_token }}" + TOOLS + MARKS + OPENS), pair(1, options=options))

    assert [(finding.code, finding.rows) for finding in blind.findings if finding.rows] == [("dropped_tools", (1,))]
    assert failed(blind) == ["shows tools"]
    assert seeing.findings == ()


def test_a_prompt_that_an_assistant_ends_is_an_error(tokenizer_directory: Save) -> None:
    report = check(tokenizer_directory(), pair(1), pair(2, user(), assistant("was")))

    assert [(finding.code, finding.rows) for finding in report.findings] == [("assistant_prompt", (2,))]


def test_special_tokens_in_texts_are_a_warning(tokenizer_directory: Save) -> None:
    report = check(tokenizer_directory(), pair(1, user("the </s> film")), pair(2))

    (finding,) = report.findings
    assert (finding.code, finding.severity, finding.rows) == ("special_tokens_in_text", "warning", (1,))
    assert finding.example == "</s>"


def test_plain_text_for_a_chat_model_is_remarked(tokenizer_directory: Save) -> None:
    report = check(tokenizer_directory(), PreferencePair("the film", "was good", "was bad", row=1))

    assert [(finding.code, finding.severity) for finding in report.findings] == [("unused_template", "info")]
    assert report.verdict == "clean"


def test_each_policy_for_long_rows_is_tried(tokenizer_directory: Save) -> None:
    rows = [
        pair(1),
        pair(2, user("the film " * 4)),
        pair(3, chosen=(assistant("good " * 9),), rejected=(assistant("bad " * 2),)),
        pair(4, chosen=(assistant("good " * 20),)),
    ]

    report = check(tokenizer_directory(), *rows, max_tokens=12)

    assert report.tokens is not None
    outcomes = {
        name: (found.kept, found.truncated, found.dropped, found.refused, found.lost_tokens)
        for name, found in report.tokens.overlong.items()
    }
    # Tokens of prompt, chosen and rejected: 6 + 3 + 4, 12 + 3 + 4, 6 + 10 + 3 and 6 + 21 + 4.
    assert outcomes == {
        "error": (1, 0, 3, True, 19 + 19 + 31),
        "drop": (1, 0, 3, False, 19 + 19 + 31),
        "truncate_prompt": (3, 2, 1, False, 4 + 4 + 31),
        "truncate_response": (3, 2, 1, False, 19 + 4 + 15),
    }
    (overlong,) = report.findings
    assert (overlong.code, overlong.severity, overlong.rows) == ("overlong", "error", (2, 3, 4))
    assert "raise max_tokens" in overlong.advice
    dropping = check(tokenizer_directory(), *rows, max_tokens=12, overlong="drop")
    assert [finding.severity for finding in dropping.findings] == ["warning"]


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% else %}{{ eos_token }}{% endif %}"
)
BARE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }} {{ eos_token }} {% endfor %}"


@pytest.mark.parametrize(
    ("template", "opens"), [(MISTRAL, True), (PHI, True), (BARE, False)], ids=["mistral", "phi", "bare"]
)
def test_a_template_opens_the_answer_with_a_prompt_a_mark_or_before_an_end(
    tokenizer_directory: Save, template: str, opens: bool
) -> None:
    report = check(tokenizer_directory(template=template), pair())

    assert ("opens the assistant's turn" not in failed(report)) is opens


def test_examples_show_where_the_loss_is_taken(tokenizer_directory: Save) -> None:
    rows = [pair(1), pair(2, user("the")), pair(3, user("the film . the film .")), pair(4)]

    report = check(tokenizer_directory(), *rows)

    assert report.tokens is not None
    examples = report.tokens.examples
    assert [(example.row, example.side) for example in examples] == [
        (row, side) for row in (1, 2, 3) for side in ("chosen", "rejected")
    ]
    first = examples[0]
    assert (first.tokens, first.loss_tokens) == (9, 3)
    assert [(span.text, span.in_loss) for span in first.spans] == [
        ("<s> <user> the film </s> <assistant>", False),
        ("was good </s>", True),
    ]


def test_examples_show_that_the_loss_is_on_the_assistants_turns_of_a_response(tokenizer_directory: Save) -> None:
    said = (assistant("was good"), user("the"), assistant("was bad"))

    report = check(tokenizer_directory(), Completion((user(),), said, row=1))

    assert report.tokens is not None
    (example,) = report.tokens.examples
    assert [(span.text, span.in_loss) for span in example.spans] == [
        ("<s> <user> the film </s> <assistant>", False),
        ("was good </s>", True),
        ("<user> the </s> <assistant>", False),
        ("was bad </s>", True),
    ]
    assert (example.tokens, example.loss_tokens) == (16, 6)


def test_the_command_looks_through_a_model(tokenizer_directory: Save, tmp_path: Path) -> None:
    file, directory, page = tmp_path / "rows.jsonl", tokenizer_directory(), tmp_path / "page.html"
    file.write_text(json.dumps({"prompt": "the film", "chosen": "was good", "rejected": "was bad . . . ."}))

    def run(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dataset", "check", str(file), "--model", str(directory), *options])
        return result.exit_code, result.stdout

    code, output = run("--html", str(page))
    assert code == 0
    assert "through the tokenizer of model" in output
    assert "row 1, rejected: 10 tokens, 7 in the loss" in output
    assert "<mark>was good &lt;/s&gt;</mark>" in page.read_text()
    assert run("--max-tokens", "8")[0] == 2
    assert run("--max-tokens", "8", "--overlong", "truncate_response", "--strict")[0] == 1


def test_rows_with_tokens_that_the_model_does_not_embed_are_found(tokenizer_directory: Save) -> None:
    directory = tokenizer_directory(additional_special_tokens=["<tool>"])
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    (number,) = (token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<tool>")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": number}))

    report = check(directory, pair(1), pair(2, user("the <tool> film")))

    (found,) = (finding for finding in report.findings if finding.code == "unembedded_token")
    assert (found.rows, found.severity, found.example) == ((2,), "error", "<tool>")
    assert "resize_token_embeddings" in found.advice


def test_a_row_longer_than_the_model_reads_is_not_to_be_kept_by_a_larger_max_tokens(tokenizer_directory: Save) -> None:
    directory = tokenizer_directory()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 12}))

    (found,) = check(directory, pair(1, user("the film " * 4)), max_tokens=None).findings

    assert found.code == "overlong"
    assert "shorten them, as the model reads no more than 12 tokens" in found.advice
    assert "raise max_tokens" not in found.advice
