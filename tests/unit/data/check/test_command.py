"""`madpo dataset check` on files: no gateway, and exit codes for scripts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from madpo.data.check.report import CheckReport
from madpo_client.cli import app

pytestmark = pytest.mark.data

GOOD = [
    {"prompt": f"what is {row} times {row}", "chosen": f"it is {row * row}", "rejected": f"it is {row}, or not"}
    for row in range(2, 30)
]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["dataset", "check", *arguments])
    return result.exit_code, result.output


def test_exit_codes_tell_clean_from_warned_from_refused(tmp_path: Path) -> None:
    clean = write(tmp_path / "clean.jsonl", GOOD)
    warned = write(tmp_path / "warned.jsonl", [*GOOD, GOOD[0]])
    refused = write(tmp_path / "refused.jsonl", [*GOOD, {"prompt": "nothing else", "chosen": ""}])

    assert run(clean, "--strict")[0] == 0
    assert run(warned)[0] == 0
    assert run(warned, "--strict")[0] == 1
    assert run(refused)[0] == run(refused, "--strict")[0] == 2


def test_the_table_says_which_rows_and_what_to_do(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", [*GOOD, GOOD[4], {"prompt": "x", "chosen": "y", "rejected": 3}])

    _, output = run(file, "--held-out", write(tmp_path / "held-out.jsonl", [GOOD[7]]))

    assert "some.jsonl: refused" in output
    assert "30 read, 29 kept (29 preference), 1 refused" in output
    assert "rejected: must be text or a list of messages, got ..." in output
    assert "1 duplicates" in output
    assert "rows 29" in output
    assert "1 prompts, found in 1 rows" in output


def test_a_mapping_and_a_rule_for_lists_say_how_a_file_is_read(tmp_path: Path) -> None:
    rows = [
        {"question": row["prompt"], "best": row["chosen"], "rejected": row["rejected"], "weight": "heavy"}
        for row in GOOD
    ]
    ranked = [
        {"context": row["prompt"], "completions": [{"completion": f"{row['chosen']} {n}", "rank": n} for n in range(3)]}
        for row in GOOD
    ]

    code, output = run(write(tmp_path / "some.jsonl", rows), "--map", "chosen=best", "--map", "weight=")
    listed = run(write(tmp_path / "ranked.jsonl", ranked), "--lists", "pairs")[1]

    assert (code, "intel in 28 rows: chosen from best, prompt from question" in output) == (0, True), output
    assert "28 read, 84 kept (84 preference)" in listed
    assert run(str(tmp_path / "ranked.jsonl"))[0] == run(str(tmp_path / "some.jsonl"))[0] == 2
    assert "must be NAME=COLUMN" in run(str(tmp_path / "some.jsonl"), "--map", "chosen")[1]
    assert "say how to read a file" in run("dataset-" + "0" * 32, "--map", "chosen=best")[1]


def test_json_page_and_rows_are_the_same_report(tmp_path: Path) -> None:
    file, page, rows = write(tmp_path / "some.jsonl", [*GOOD, GOOD[4]]), tmp_path / "page.html", tmp_path / "rows.jsonl"

    done = CliRunner().invoke(app, ["dataset", "check", file, "--json", "--html", str(page), "--rows", str(rows)])

    assert done.exit_code == 0
    assert "29 rows in" in done.stderr
    report = CheckReport.from_json(done.stdout)
    assert report.name == "some.jsonl"
    assert report.findings[0].title[1:] in page.read_text()
    assert json.loads(rows.read_text()) == {"row": 29, "code": "duplicate", "of": 5}


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dataset", "check", str(tmp_path / "none.jsonl")])
    assert "none.jsonl is not a file" in str(result.exception)
