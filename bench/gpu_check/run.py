"""python -m bench.gpu_check.run [--cpu | --quick] [--only NAME ...] [--out FILE]: all checks, a table, and a JSON file.

Needs torch 2.11 or newer and no network; meant for under nine minutes on one H100. `--cpu` runs every check small on
a CPU, which says that the checks themselves work. Exits with 1 when one fails.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.gpu_check import engines, kernels, losses, sharded, training
from bench.gpu_check.check import Check, CheckFailed, Setting, Skipped

CHECKS: tuple[Check, ...] = (*kernels.CHECKS, *losses.CHECKS, *training.CHECKS, *engines.CHECKS, *sharded.CHECKS)
_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}
_CPU_PATIENCE = 3
"""Slow machines run the small checks too."""


def main() -> int:
    """Run the checks that are asked for."""
    arguments = _arguments()
    if arguments.one:
        return _run_one(arguments.one, arguments.size)
    console = Console()
    names = arguments.only or [check.name for check in CHECKS]
    results = []
    for check in CHECKS:
        if check.name in names:
            results.append(run(check, arguments.size))
            console.print(_line(results[-1]))
            _write(arguments.out, results, arguments.size)  # a later check may take the host along
    console.print(_table(results), f"written: {arguments.out}")
    return int(any(each["status"] == "failed" for each in results))


def run(check: Check, size: str) -> dict[str, Any]:
    """One check in a process of its own: what came of it, also of one that crashed or hung."""
    command = [sys.executable, "-m", "bench.gpu_check.run", "--one", check.name, "--size", size]
    limit_s = check.limit_s * (_CPU_PATIENCE if size == "cpu" else 1)
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        said: dict[str, Any] = {"status": "failed", "reason": f"took longer than {limit_s:g} s"}
    else:
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        last = next(iter(reversed(done.stderr.strip().splitlines())), "")
        crashed = {"status": "failed", "reason": f"ended with code {done.returncode}: {last}"}
        said = json.loads(lines[-1]) if lines and done.returncode == 0 else crashed
    return {"name": check.name, "seconds": round(time.monotonic() - start, 1), "figures": {}, "reason": ""} | said


def _run_one(name: str, size: str) -> int:
    """In the process of a check: its result as a line of JSON."""
    import torch

    if size == "cpu":
        torch.set_num_threads(1)
    (check,) = [check for check in CHECKS if check.name == name]
    try:
        setting = Setting.of(size)
        if setting.is_cuda and not torch.cuda.is_available():
            raise CheckFailed("torch sees no GPU", {})
        result = {"status": "passed", "figures": check.run(setting)}
    except CheckFailed as error:
        result = {"status": "failed", "reason": str(error), "figures": error.figures}
    except Skipped as error:
        result = {"status": "skipped", "reason": str(error)}
    print(json.dumps(result), flush=True)
    return 0


def _write(path: Path, results: Sequence[dict[str, Any]], size: str) -> None:
    by_name = {each["name"]: each["figures"] for each in results}
    document = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": size,
        "host": by_name.get("facts", {}),
        "peak": by_name.get("matmul", {}),
        "checks": results,
        "passed": sum(each["status"] == "passed" for each in results),
        "failed": sum(each["status"] == "failed" for each in results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _line(result: dict[str, Any]) -> str:
    style = _STYLES[result["status"]]
    return f"[{style}]{result['status']:>8}[/] {result['name']} ({result['seconds']} s) {escape(result['reason'])}"


def _table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table("check", "result", "s", "what was seen")
    for each in results:
        style = _STYLES[each["status"]]
        seen = each["reason"] or json.dumps(each["figures"])
        table.add_row(each["name"], f"[{style}]{each['status']}[/]", str(each["seconds"]), escape(seen[:600]))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", dest="size", action="store_const", const="cpu", default="full")
    parser.add_argument("--quick", dest="size", action="store_const", const="quick")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS])
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=["full", "quick", "cpu"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
