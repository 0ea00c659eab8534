"""What keeps the house in order beside the layers that import-linter holds: no circles, and files that fit a head."""

import ast
from pathlib import Path
from statistics import median, quantiles

import grimp
import pytest

import madpo

ROOT = Path(madpo.__file__).parents[2]
PACKAGES = (
    "madpo",
    "madpo_client",
    "madpo_gateway",
    "madpo_reward",
    "madpo_trainer",
    "madpo_evaluator",
    "madpo_examples",
)
SOURCES = [
    path
    for folder in ("src", "client", "services", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "v1" not in path.parts
]
MAX_LINES = 400


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    waiting = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, imported in waiting.items() if not imported & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"these modules are in a circle, or import one that is: {sorted(waiting)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_fits_a_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES, f"{path} has grown over {MAX_LINES} lines: find its seam"


def test_functions_are_short() -> None:
    functions = (
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in functions]
    assert median(lengths) <= 8
    assert quantiles(lengths, n=10)[-1] <= 24
