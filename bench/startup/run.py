"""`python -m bench.startup.run --against OTHER/.venv/bin/python`: how long people wait before anything happens.

A stack is put up and three tiny trainings are run on it, one at once, one right after it, and one after a while without
jobs, by this checkout and by another one in turns. On a machine that others use as well the CPU-seconds are what to
look at; of the last training, they are those since it was claimed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.meters import conditions, machine

_ONCE = Path(__file__).with_name("once.py")
_FIGURES = {
    "`madpo up` to all serving": ("up", "cpu_s", "wall_s"),
    "a job at once: until its first step": ("at_once", "", "claim_to_step_s"),
    "a job at once: until its end": ("at_once", "cpu_s", "claim_to_end_s"),
    "the job after it: until its first step": ("next", "", "claim_to_step_s"),
    "the job after it: until its end": ("next", "cpu_s", "claim_to_end_s"),
    "a job after 30 s: until its first step": ("after_idle", "", "claim_to_step_s"),
    "a job after 30 s: until its end": ("after_idle", "cpu_s", "claim_to_end_s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the interpreter of another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    interpreters = {"this": sys.executable} | ({"other": options.against} if options.against else {})
    result: dict[str, Any] = {"machine": machine(), "before": conditions(), "rounds": []}
    for number in range(options.rounds):
        result["rounds"].append({name: _once(python) for name, python in interpreters.items()})
        print(f"round {number + 1} of {options.rounds}: {json.dumps(result['rounds'][-1])}", flush=True)
    result["after"] = conditions()
    if options.result:
        options.result.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["rounds"]))


def table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Medians over rounds, in Markdown: CPU-seconds and seconds of each checkout."""
    names = list(rounds[0])
    lines = [f"| | {' | '.join(f'{name}: CPU-s | s' for name in names)} |", "|---" * (1 + 2 * len(names)) + "|"]
    for title, (part, cpu, wall) in _FIGURES.items():
        cells = [_median(rounds, name, part, field) for name in names for field in (cpu, wall)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(rounds: Sequence[Mapping[str, Any]], name: str, part: str, field: str) -> str:
    return f"{median(each[name][part][field] for each in rounds):.1f}" if field else ""


def _once(python: str) -> Any:
    done = subprocess.run([python, str(_ONCE)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
