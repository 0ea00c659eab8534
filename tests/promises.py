"""What is promised of madpo's reliability, the tests that hold it, and what came of them: docs/reliability.md.

A test holds a promise by its mark, `@pytest.mark.promise("J1")`, and says a figure by the fixture `figure`. `make
promises` runs them all and keeps what came of it in `tests/promises.json`; `make docs` writes the table from both.
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
RECORD = TESTS / "promises.json"
PROMISE, FIGURE = "promise", "figure"
_BEGIN, _END = "<!-- promises: written by `make docs` -->", "<!-- end of promises -->"


@dataclass(frozen=True, slots=True)
class Promise:
    """One of them. `seen_by` is what holds it besides tests of pytest."""

    name: str
    says: str
    seen_by: str = ""


PROMISES = (
    Promise("J1", "A submitted job is never lost"),
    Promise("J2", "Submitting again makes no second job, whatever reply was lost"),
    Promise("J3", "A dead worker's job is taken up; a live worker's never is"),
    Promise("J4", "Of two workers that believe they own a job one can write"),
    Promise("J5", "A job that kills its worker again and again stops, and holds up nobody"),
    Promise("J6", "A cancelled job ends, and stays so"),
    Promise("J7", "A watch has no gap and no repetition; a slow watcher costs nothing"),
    Promise("J8", "No history of calls leads to an illegal state"),
    Promise("T1", "A run that was killed or paused ends with the bytes it would have had"),
    Promise("T2", "A checkpoint is whole or not there, wherever the save is cut off"),
    Promise("T3", "What was damaged at rest is noticed before it is used"),
    Promise(
        "T4",
        "The same pair has the same score, bit by bit, in any company and on any replica; in packed rows on a GPU to "
        "the tolerance of their revision",
    ),
    Promise("T5", "A reward model cannot change within a run"),
    Promise("T6", "No number that is none reaches the weights"),
    Promise("G1", "The loss of a scorer is not seen by callers"),
    Promise("G2", "New scorers carry traffic by themselves", "`scripts/compose_e2e.sh`: 1 to 3 scorers during a run"),
    Promise("G3", "A service that is stopped finishes its calls"),
    Promise("G4", "A full queue refuses with a hint and goes on"),
    Promise("G5", "Work that nobody waits for is not done"),
    Promise("G6", "What is too large is split or refused, never sent again and again"),
    Promise("G7", "A scorer that cannot score says so to who asks for its health"),
    Promise("D1", "Redis may be away during a run"),
    Promise("D2", "Redis may lose everything: the jobs come back"),
    Promise("D3", "A write to the object store whose reply was lost has happened once"),
    Promise("D4", "The object store may be away during a run"),
    Promise("D5", "A disk that is full damages nothing"),
    Promise("D6", "Nothing grows for ever", "`make soak`, below"),
    Promise("D7", "Containers start healthy, and a missing secret is said", "`scripts/compose_e2e.sh`"),
    Promise("D8", "A backup of a stack at work is whole, and is restored in one command"),
    Promise("D9", "A damaged home of the embedded stack is mended, and what was done is said"),
    Promise("H1", "Broken and hostile files are refused with the reason, and cost bounded memory"),
    Promise("H2", "A file changed in any byte is read or refused, never worse"),
    Promise("H3", "Every call asks for a token, and a role opens what it says"),
    Promise("H4", "Secrets stay secret"),
    Promise("H5", "Models that would run code, or break what loads them, are refused"),
    Promise(
        "H6", "A model whose template or tokenizer never ends is the reason where it is used, and holds up nobody else"
    ),
)


def tests_by_promise() -> dict[str, list[str]]:
    """The tests of each promise, as `path::name` below `tests/`."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text()
        if "mark.promise" in source:
            for promise, test in _marked(ast.parse(source)):
                found[promise].append(f"{path.relative_to(TESTS).as_posix()}::{test}")
    return dict(found)


def _marked(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    yield from ((ast.literal_eval(argument), node.name) for argument in mark.args)


def collect(reports: list[Any]) -> dict[str, dict[str, Any]]:
    """Of each test that ran: how many of its cases passed and failed, and the figures it said."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        said = [(name, value) for name, value in getattr(report, "user_properties", ())]
        if not any(name == PROMISE for name, _ in said) or (report.when != "call" and not report.failed):
            continue
        test = re.sub(r"\[.*", "", report.nodeid, flags=re.DOTALL).removeprefix("tests/")
        of_test = found.setdefault(test, {"passed": 0, "failed": 0, "figures": []})
        if not report.skipped:
            of_test["passed" if report.passed else "failed"] += 1
        of_test["figures"] += [value for name, value in said if name == FIGURE and value not in of_test["figures"]]
    return found


def keep(found: dict[str, dict[str, Any]]) -> None:
    """Write what came of a run over what is kept; of tests that it did not run the kept stays."""
    kept = read_record() | found
    known = {test for tests in tests_by_promise().values() for test in tests}
    RECORD.write_text(json.dumps({test: kept[test] for test in sorted(kept.keys() & known)}, indent=1) + "\n")


def read_record() -> dict[str, dict[str, Any]]:
    """What is kept."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def table() -> str:
    """Promise, tests, figures, in Markdown."""
    tests, record = tests_by_promise(), read_record()
    lines = ["| | promise | held by | seen |", "|---|---|---|---|"]
    for promise in PROMISES:
        named = tests.get(promise.name, [])
        links = [f"[{_words(test)}](../tests/{test.split('::')[0]})" for test in named]
        seen = [_seen(record.get(test)) for test in named]
        if promise.seen_by:
            links.append(promise.seen_by)
            seen.append("")
        lines.append(f"| {promise.name} | {promise.says} | {'<br>'.join(links)} | {'<br>'.join(seen)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{rest.split(_END)[1]}"


def _words(test: str) -> str:
    return test.split("::test_")[1].replace("_", " ")


def _seen(result: dict[str, Any] | None) -> str:
    if result is None or not result["passed"] + result["failed"]:
        return "not run in the last record"
    if result["failed"]:
        return f"**{result['failed']} FAILED**"
    cases = f"{result['passed']} cases" if result["passed"] > 1 else "held"
    return "; ".join([cases, *result["figures"]])


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
