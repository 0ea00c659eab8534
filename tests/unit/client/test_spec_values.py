"""Specs in files, and values on the command line."""

import io
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import InvalidArgumentError
from madpo_client.cli.spec_values import parse_value, read_spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("0.1", 0.1),
        ("5e-6", 5e-6),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("~", None),
        ('["q_proj","v_proj"]', ["q_proj", "v_proj"]),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("{quantile: 0.9}", {"quantile": 0.9}),
        ('"2"', "2"),
        ("'2'", "2"),
        ("fail", "fail"),
        ("", ""),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("010", "010"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("a # b", "a # b"),
        ("#x", "#x"),
        (" # x", " # x"),
        ("null # x", "null # x"),
        ("@last:reward", "@last:reward"),
        ("{reward_model: @last:reward, a: 1}", {"reward_model": "@last:reward", "a": 1}),
        ("---", "---"),
        ("  ", "  "),
        ("[open", "[open"),
        ("job-" + "0" * 32 + "@20", "job-" + "0" * 32 + "@20"),
    ],
)
def test_a_value_is_json_or_a_yaml_scalar_or_the_text_itself(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert (parsed, type(parsed)) == (value, type(value))


YAML = """
# what is trained
model: model-1
training:
  epochs: 2
  optimizer: {learning_rate: 5e-6}
  lora: {target_modules: [q_proj, v_proj]}
method: {name: no, params: {1: on}}
"""
SPEC = {
    "model": "model-1",
    "training": {"epochs": 2, "optimizer": {"learning_rate": 5e-6}, "lora": {"target_modules": ["q_proj", "v_proj"]}},
    "method": {"name": "no", "params": {"1": "on"}},
}
JSON = '{"model": "model-1",\n\t"training": {"epochs": 2}}'


@pytest.mark.parametrize("name", ["spec.yaml", "spec.yml", "spec", "spec.txt"])
def test_yaml_says_what_it_looks_like(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(YAML)
    assert read_spec(tmp_path / name) == SPEC


@pytest.mark.parametrize("name", ["spec.json", "spec.JSON", "spec", "spec.txt"])
def test_json_is_told_by_its_ending_or_by_how_it_begins(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"\ufeff{JSON}")
    assert read_spec(tmp_path / name) == {"model": "model-1", "training": {"epochs": 2}}


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("model: model-1"))
    assert read_spec(Path("-")) == {"model": "model-1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", b"model: x", r"s\.json is no JSON: Expecting value: line 1 column 1"),
        ("s.json", b'{"a": 1, "a": 2}', r"s\.json is no JSON: a is given twice"),
        ("s.yaml", b"model: x\n  epochs: 1\n", r"s\.yaml is no YAML: line 2: mapping values are not allowed here"),
        ("s.yaml", b"a: 1\nb:\n  c: 1\n  c: 2\n", r"s\.yaml is no YAML: line 4: c is given twice"),
        ("s.yaml", b"a: {b: 1\n", r"s\.yaml is no YAML: line 2: while parsing a flow mapping, expected ',' or '}'"),
        ("s.yaml", b"? [a]\n: 1\n", r"s\.yaml is no YAML: line 1: a name must be a word"),
        ("s.yaml", b"a: &x [*x]\n", r"s\.yaml is no YAML: line 1: found unconstructable recursive node"),
        ("s.yaml", b"a: !!python/name:os.system x\n", r"line 1: could not determine a constructor for the tag"),
        ("s.yaml", b"a: !!timestamp 2026-01-02\n", r"line 1: could not determine a constructor for the tag"),
        ("s.yaml", b"a: \x00\n", r"s\.yaml is no YAML: unacceptable character #x0000"),
        ("s.yaml", b"\xff\xfe", r"cannot read .*s\.yaml: it is no text in UTF-8"),
        ("s.yaml", b"- model\n", r"s\.yaml holds a list where the fields of a spec were expected, such as `model: "),
        ("s.yaml", b"model", r"s\.yaml holds text where"),
        ("s.yaml", b"", r"s\.yaml holds nothing where .*`madpo job fields KIND` lists them"),
        ("s.json", b"3", r"s\.json holds a number where"),
    ],
)
def test_what_is_no_spec_is_refused_by_what_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_spec(tmp_path / name)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*none\.yaml: No such file or directory"):
        read_spec(tmp_path / "none.yaml")
    with pytest.raises(InvalidArgumentError, match="Is a directory"):
        read_spec(tmp_path)


def test_the_newest_needs_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("model: @last\nmargin: {reward_model: @last:reward}\nbaselines:\n- @last\n")
    assert read_spec(path) == {"model": "@last", "margin": {"reward_model": "@last:reward"}, "baselines": ["@last"]}
