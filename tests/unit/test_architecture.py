"""What keeps the house in order beside the layers that import-linter holds: no circles, and files that fit a head."""

import ast
from collections.abc import Iterator
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
WAITED_FOR = {
    "client/madpo_client/session.py": 1,  # the thread of all clients: whoever calls waits for it
    "services/console/madpo_console/following.py": 2,  # by those that look, the next one begins it again; by `close`
    "services/gateway/madpo_gateway/access.py": 1,  # by whoever needs the tokens; the next one reads again
    "services/gateway/madpo_gateway/row_check.py": 1,  # by the call
    "services/gateway/madpo_gateway/spool.py": 1,  # by the call
    "services/gateway/madpo_gateway/streams.py": 1,  # by the call
    "services/trainer/madpo_trainer/follower.py": 1,  # looked at in each round; ended with the attempt
    "services/trainer/madpo_trainer/margins/remote.py": 2,  # `take` hears of its end; and by the call
    "services/trainer/madpo_trainer/ranks.py": 1,  # a future has what it comes to
    "src/madpo/queue/watching.py": 1,  # all watches hear of its end, and the next one begins it again
    "src/madpo/rpc/gateway/datasets.py": 1,  # ended with the call; only shows how far it is
    "src/madpo/rpc/open_calls.py": 1,  # logs what fails; the next call begins it again
    "src/madpo/rpc/reward_client.py": 1,  # by the call
    "src/madpo/rpc/server.py": 2,  # by the process
    "src/madpo/storage/place_lock.py": 1,  # whoever holds the lock finds out before it matters
    "src/madpo/worker/child.py": 1,  # by the attempt
}
"""Files that start tasks or threads themselves: how many, and who waits for them."""


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


def test_what_nobody_waits_for_is_started_by_the_helper_that_logs_its_end() -> None:
    found = {path.relative_to(ROOT).as_posix(): len(list(started(ast.parse(path.read_text())))) for path in SOURCES}
    del found["src/madpo/background.py"]
    advice = "use madpo.background or a TaskGroup, or say here who waits for it"
    assert {path: count for path, count in found.items() if count} == WAITED_FOR, advice


def started(module: ast.Module) -> Iterator[ast.Call]:
    """Calls that start a task or a thread, but for those of task groups."""
    groups = {"tasks", "requests"} & {
        item.optional_vars.id
        for node in ast.walk(module)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        receiver, _, name = ast.unparse(node.func).rpartition(".")
        if name in ("create_task", "ensure_future", "Thread", "Timer") and receiver not in groups:
            yield node
