"""Rows with planted faults, and what the report says of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madpo.data.check.check import CheckedFile, DatasetCheck
from madpo.data.check.numbers import Numbers
from madpo.data.check.personal import find_personal
from madpo.data.check.report import CheckReport, Finding
from madpo.data.check.scripts import script_of
from madpo.types import DatasetRow, Message, PreferencePair

pytestmark = pytest.mark.data

WORDS = [f"word{index}" for index in range(400)]


def sentence(start: int, words: int = 20) -> str:
    return " ".join(WORDS[(start * 7 + 3 * index) % 400] for index in range(words))


def pair(row: int, **changes: Any) -> PreferencePair:
    contents = {"prompt": sentence(row), "chosen": sentence(row + 90, 25), "rejected": sentence(row + 170)}
    return PreferencePair(**(contents | changes), row=row)


def check(rows: list[DatasetRow], held_out: list[DatasetRow] | None = None) -> tuple[CheckReport, list[dict[str, Any]]]:
    file = io.StringIO()
    checked = DatasetCheck(rows_file=file, held_out=held_out)
    assert list(checked.watch(rows)) == rows
    return checked.report("rows"), [json.loads(line) for line in file.getvalue().splitlines()]


def check_lines(tmp_path: Path, *lines: str) -> CheckReport:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    checked = DatasetCheck()
    list(checked.watch(CheckedFile(path)))
    return checked.report("rows.jsonl")


def found(report: CheckReport, code: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.code == code)
    return finding


def test_different_rows_are_clean() -> None:
    report, lines = check([pair(row, rejected=sentence(row + 170, 15 + row % 20)) for row in range(1, 40)])

    assert report.verdict == "clean"
    assert report.findings == ()
    assert lines == []
    assert report.rows.model_dump() == {"read": 39, "kept": 39, "refused": 0, "kinds": {"preference": 39}, "forms": ()}
    assert report.duplicates.distinct_prompts == 39


def test_repetitions_of_each_sort_are_told_apart() -> None:
    first = pair(1)
    rows = [
        first,
        pair(2, prompt=first.prompt, chosen=first.chosen, rejected=first.rejected),
        pair(3, prompt=first.prompt, chosen=first.rejected, rejected=first.chosen),
        pair(4, prompt=first.prompt, chosen=f"{first.chosen} indeed", rejected=first.rejected),
        pair(5, chosen="Yes,  of course", rejected="yes, of COURSE "),
        pair(6),
    ]

    report, lines = check(rows)

    assert {finding.code: finding.rows for finding in report.findings} == {
        "duplicate": (2,),
        "contradictory_pair": (3,),
        "near_duplicate": (4,),
        "identical_pair": (5,),
    }
    assert report.verdict == "warnings"
    figures = report.duplicates
    assert (figures.exact, figures.contradictory, figures.near, figures.identical) == (1, 1, 1, 1)
    assert {(line["row"], line["code"], line.get("of")) for line in lines} == {
        (2, "duplicate", 1),
        (3, "contradictory_pair", 1),
        (4, "near_duplicate", 1),
        (5, "identical_pair", None),
    }


def test_held_out_prompts_are_found_in_the_data() -> None:
    held_out = [pair(row) for row in range(1, 4)]
    rows = [pair(11), pair(12, prompt=sentence(2).upper()), pair(13, prompt=sentence(3) + " please")]

    report, _ = check(rows, held_out)

    assert found(report, "leaked_prompt").rows == (12,)
    assert found(report, "nearly_leaked_prompt").rows == (13,)
    assert report.leakage is not None
    assert report.leakage.model_dump() == {"held_out_rows": 3, "held_out_prompts": 3, "exact": 1, "near": 1}


def test_a_finding_lists_twenty_rows_and_the_file_has_all() -> None:
    copies = [pair(row, prompt="a", chosen="b", rejected="c") for row in range(1, 101)]

    report, lines = check(copies)

    duplicate = found(report, "duplicate")
    assert duplicate.count == 99
    assert duplicate.rows == tuple(range(2, 22))
    assert [line["row"] for line in lines if line["code"] == "duplicate"] == list(range(2, 101))


def test_refused_rows_are_grouped_by_reason(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"})
    bad_role = json.dumps({"prompt": [{"role": "judge", "content": "x"}], "chosen": [], "rejected": []})
    other_role = json.dumps({"prompt": [{"role": "jury", "content": "x"}], "chosen": [], "rejected": []})

    report = check_lines(tmp_path, good, '{"prompt": "p", "chosen": ""', bad_role, other_role, '{"prompt": 1}', good)

    assert report.verdict == "refused"
    assert (report.rows.read, report.rows.kept, report.rows.refused) == (6, 2, 4)
    refused = [finding for finding in report.findings if finding.code == "refused"]
    assert sorted(finding.rows for finding in refused) == [(2,), (3, 4), (5,)]
    grouped = next(finding for finding in refused if finding.rows == (3, 4))
    assert grouped.title == "prompt[N].role: must be one of system, developer, user, assistant, tool, got ..."
    assert "'judge'" in grouped.example


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    assert found(check_lines(tmp_path, "", " "), "no_rows").severity == "error"


def test_rows_of_two_kinds_are_refused(tmp_path: Path) -> None:
    report = check_lines(
        tmp_path, '{"prompt": "p", "chosen": "a", "rejected": "b"}', '{"prompt": "p", "completion": "c"}'
    )

    assert found(report, "mixed_kinds").title == "rows of several kinds: 1 preference, 1 completion"
    assert report.verdict == "refused"


def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 not at all")
    checked = DatasetCheck()

    assert list(checked.watch(CheckedFile(path))) == []
    assert found(checked.report("rows.parquet"), "unreadable").severity == "error"


def test_secrets_and_addresses_are_counted_and_never_shown() -> None:
    secrets = {
        "e-mail address": "ada.lovelace@example.org",
        "AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
        "GitHub token": "ghp_" + "a1" * 20,
        "private key": "-----BEGIN RSA PRIVATE KEY-----",
        "password in a URL": "postgres://admin:hunter22@db.example.org/x",
        "sk- key": "sk-" + "proj-" + "Ab1" * 12,
    }
    rows = [
        pair(row, chosen=f"{sentence(row)} {secret} {sentence(row)}")
        for row, secret in enumerate(secrets.values(), start=1)
    ]

    report, lines = check(rows)

    assert report.personal == dict.fromkeys(secrets, 1)
    shown = report.to_json() + json.dumps(lines)
    assert not [secret for secret in secrets.values() if secret in shown]


def test_ordinary_text_holds_no_secrets() -> None:
    text = "Mail me @home about sk-learn, gh_pages, https://example.org:8080/a@b and the AKIA rule; 3 @ 5 USD."
    assert find_personal(text) == set()


def test_chats_are_described_by_roles_and_turns() -> None:
    system, user, assistant = (Message(role, f"{role} says") for role in ("system", "user", "assistant"))
    empty = Message("system", " ")
    rows = [
        pair(1, prompt=(system, user), chosen=(assistant,), rejected=(Message("assistant", "no"),)),
        pair(2, prompt=(empty, user, assistant, user), chosen=(assistant,), rejected=(Message("assistant", "No."),)),
        pair(3, prompt=(user,), chosen=(assistant,), rejected=(Message("assistant", "never"),)),
    ]

    report, _ = check(rows)

    text = report.text
    assert text.turns is not None
    assert (text.turns.smallest, text.turns.quantiles["0.5"], text.turns.largest) == (1, 2, 4)
    assert text.roles == {"assistant": 7, "user": 4, "system": 2}
    assert (text.system_prompts, text.distinct_system_prompts, text.empty_system_prompts) == (2, 2, 1)
    assert {phrase.text for phrase in text.role_sequences} == {"system user", "system user assistant user", "user"}
    assert found(report, "empty_system_prompt").rows == (2,)


def test_a_strong_length_bias_is_a_warning() -> None:
    rows = [pair(row, rejected=sentence(row + 170, 5 if row % 10 else 40)) for row in range(1, 201)]

    report, _ = check(rows)

    assert report.length_bias is not None
    assert report.length_bias.longer_chosen_ratio == 0.9
    assert report.length_bias.low < 0.9 < report.length_bias.high
    assert found(report, "length_bias").title == "the longer response is chosen in 90% of the pairs"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("plain words", "Latin"),
        ("Żółta łódź", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("ΓΔΘΛΞ ΠΣΦΨΩ", "Greek"),
        ("你好世界", "Han"),
        ("これは日本語です漢字漢字漢字", "Kana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("1 + 1 = 2", "none"),
        ("ⵜⵉⴼⵉⵏⴰⵖ", "other"),
    ],
)
def test_scripts_are_told_by_their_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_the_report_survives_json_and_is_the_same_twice() -> None:
    rows: list[DatasetRow] = [pair(row % 30 + 1) for row in range(300)]

    report, lines = check(rows)
    again, again_lines = check(rows)

    assert CheckReport.from_json(report.to_json()) == report == again
    assert lines == again_lines
    assert json.loads(report.to_json())["verdict"] == report.verdict


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
def test_a_distribution_accounts_for_every_number(values: list[int]) -> None:
    numbers = Numbers()
    for value in values:
        numbers.add(value)

    spread = numbers.distribution()

    assert spread is not None
    edges, counts = spread.histogram.edges, spread.histogram.counts
    assert sum(counts) == spread.count == len(values)
    assert list(edges) == sorted(set(edges))
    assert edges[0] <= min(values)
    assert edges[-1] >= max(values)
    assert len(counts) <= 60
    for share, value in spread.quantiles.items():
        below = sum(other <= value for other in values)
        assert below >= float(share) * len(values)
        assert value in values
