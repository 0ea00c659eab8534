"""The table of families and flows, as the tests say it: `python -m tests.families.table` writes it into docs/models.md.

A cell is what tests are marked with it: `@pytest.mark.cell(COLUMN)`, or the column of the flow where it has none. So
the page says nothing that no test does, and a run of the tests shows the same table with what came of it.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.conftest import FAMILY_CELL
from tests.families import test_policy, test_reward, test_supervised
from tests.families.catalogue import FAMILIES
from tests.families.family import Family
from tests.families.refusals import REFUSALS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
FLOWS = {
    "supervised": "SFT",
    "reward": "reward",
    "reward_lora": "reward LoRA",
    "policy": "policy",
    "policy_lora": "policy LoRA",
}
COLUMNS = (*FLOWS.values(), "merged", "evaluation", "files", "transformers")
_BEGIN, _END = "<!-- {}: written by `make docs` -->", "<!-- end of {} -->"


def column_of(arguments: tuple[str, ...], flow: str | None) -> str:
    """Where a test belongs, by its mark and its flow."""
    column = arguments[0] if arguments else FLOWS[flow or ""]
    assert column in COLUMNS, column
    return column


def cells_with_tests() -> set[tuple[str, str]]:
    """Every cell that has a test."""
    return {cell for module in (test_supervised, test_reward, test_policy) for cell in _cells_of(module)}


def _cells_of(module: ModuleType) -> Iterator[tuple[str, str]]:
    families: list[Family] = module.pytestmark.args[1]
    for name, function in vars(module).items():
        marks = getattr(function, "pytestmark", []) if name.startswith("test_") else []
        flows = next((mark.args[1] for mark in marks if mark.name == "parametrize" and mark.args[0] == "flow"), [None])
        for mark in marks:
            if mark.name == "cell":
                yield from ((each.name, column_of(mark.args, flow)) for each in families for flow in flows)


def families_table() -> str:
    """Families and what is tested of them, in Markdown."""
    tested = cells_with_tests()
    lines = [
        "| | stands for | kept in | layout | attention | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|---|---|" + ":-:|" * len(COLUMNS),
    ]
    for family in FAMILIES:
        cells = ["yes" if (family.name, column) in tested else "-" for column in COLUMNS]
        about = (f"`{family.name}`", family.stands_for, family.dtype, family.layout, family.attention)
        lines.append("| " + " | ".join((*about, *cells)) + " |")
    return "\n".join(lines)


def refusals_table() -> str:
    """What is not supported, in Markdown."""
    lines = ["| what | refused at | the error says | instead |", "|---|---|---|---|"]
    lines += [f"| {each.what} | the {each.heard} | {each.says} | {each.instead} |" for each in REFUSALS]
    return "\n".join(lines)


def results(cells: dict[tuple[str, str], list[bool]]) -> str:
    """What came of a run, for a terminal: ok, FAILED, or nothing where nothing ran."""
    ran = {family for family, _ in cells}
    width = max(map(len, ran))
    lines = [" " * width + "  " + "  ".join(COLUMNS)]
    for family in FAMILIES:
        if family.name in ran:
            marks = [_mark(cells.get((family.name, column))).center(len(column)) for column in COLUMNS]
            lines.append(family.name.ljust(width) + "  " + "  ".join(marks))
    return "\n".join(lines)


def collect(reports: list[Any]) -> dict[tuple[str, str], list[bool]]:
    """Whether each test of each cell passed; one that was skipped says nothing."""
    cells: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == FAMILY_CELL and (report.failed or (report.when == "call" and not report.skipped)):
                cells[value[0], value[1]].append(report.passed)
    return dict(cells)


def _mark(passed: list[bool] | None) -> str:
    return "" if passed is None else "ok" if all(passed) else "FAILED"


def with_tables(page: str) -> str:
    """The page with both tables as they are now."""
    for name, table in (("families", families_table()), ("refusals", refusals_table())):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, rest = page.split(begin + "\n")
        page = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
