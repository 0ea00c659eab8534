"""Runs the benchmark: python -m bench.run [--suite quick|full] [--only SECTION ...] [--rounds N] [--result FILE].

Every raw sample goes to one JSON file; `python -m bench.report` makes tables and plots of it. With `--result` naming a
file that is there, the sections that are run take the place of those in it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.meters import conditions, machine
from bench.peers import infinity, vllm
from bench.rounds import run_scoring, run_training
from bench.scoring.task import ScoringTask
from bench.training import growth
from bench.training.task import Task
from bench.turns import ROOT, environment

OURS, TRL = "bench.training.ours", "bench.peers.trl"
LOGS = ROOT / "out" / "bench" / "logs"


@dataclass(frozen=True, slots=True)
class Suite:
    """How much is measured."""

    training: Mapping[str, tuple[Task, tuple[str, ...]]]
    """By the name of the model: the task, and who takes part."""
    scoring: ScoringTask
    vllm: ScoringTask
    """Beside vLLM's pooling runner."""
    flops: tuple[str, ...]
    """Models whose steps' FLOPs are counted."""
    growth_rounds: int
    in_flight: int
    """Pairs that the service is asked for at once, beside its engine."""
    margin_pairs: int
    """Pairs trained on with live margins, four a step."""


def quick(rounds: int) -> Suite:
    """Under ten minutes on two cores."""
    return Suite(
        training={
            "body": (
                Task(size="body", batch=8, micro_batch=4, rounds=rounds),
                ("packed", "trl_ideal", "trl_pre", "trl"),
            ),
            "v32k": (Task(size="v32k", batch=4, micro_batch=4, rounds=rounds), ("packed", "trl_ideal")),
        },
        scoring=ScoringTask(size="body", pairs=8, rounds=rounds),
        vllm=ScoringTask(size="body", pairs=16, rounds=rounds),
        flops=("tiny",),
        growth_rounds=1,
        in_flight=16,
        margin_pairs=16,
    )


def full(rounds: int) -> Suite:
    """What is reported."""
    return Suite(
        training={
            "body": (
                Task(size="body", batch=16, micro_batch=8, rounds=rounds),
                ("packed", "unshared", "trl_ideal", "trl_pre", "trl"),
            ),
            "v32k": (
                Task(size="v32k", batch=8, micro_batch=4, rounds=rounds),
                ("packed", "plain", "trl_ideal", "trl_pre"),
            ),
            "v128k": (Task(size="v128k", batch=4, micro_batch=4, rounds=rounds), ("packed", "trl_ideal", "trl_pre")),
        },
        scoring=ScoringTask(size="body", pairs=32, rounds=rounds),
        vllm=ScoringTask(size="body", pairs=192, rounds=rounds),
        flops=("tiny", "body"),
        growth_rounds=3,
        in_flight=64,
        margin_pairs=64,
    )


SUITES: dict[str, tuple[Callable[[int], Suite], int]] = {"quick": (quick, 2), "full": (full, 3)}
"""With the number of rounds."""


def work_section(suite: Suite) -> Any:
    return _run_module("bench.training.work")


def flops_section(suite: Suite) -> Any:
    return {size: _run_module("bench.training.flops", size) for size in suite.flops}


def train_section(suite: Suite) -> Any:
    return {
        name: {"task": asdict(task)}
        | run_training(task, {variant: TRL if variant.startswith("trl") else OURS for variant in variants}, logs=LOGS)
        for name, (task, variants) in suite.training.items()
    }


def score_section(suite: Suite) -> Any:
    modules = {
        "service": "bench.scoring.ours",
        "infinity": "bench.peers.infinity",
        "pipeline_1": "bench.peers.pipeline",
        "pipeline_32": "bench.peers.pipeline",
    }
    skipped = {}
    if not infinity.ENVIRONMENT.is_dir():
        skipped["infinity"] = "its environment is not there: make bench-peers"
    taking_part = {name: module for name, module in modules.items() if name not in skipped}
    return {"task": asdict(suite.scoring), "skipped": skipped} | run_scoring(suite.scoring, taking_part, logs=LOGS)


def vllm_section(suite: Suite) -> Any:
    if not vllm.ENVIRONMENT.is_dir():
        return {"skipped": "its environment is not there: make bench-peers"}
    sides = {
        "in_process": {"layout": "bench.scoring.in_process", "vllm": "bench.peers.vllm"},
        "service": {"service": "bench.scoring.ours", "vllm_server": "bench.peers.vllm"},
    }
    task = asdict(suite.vllm)
    return {name: {"task": task} | run_scoring(suite.vllm, modules, logs=LOGS) for name, modules in sides.items()}


def growth_section(suite: Suite) -> Any:
    return {curve: _run_module("bench.training.growth", curve, str(suite.growth_rounds)) for curve in growth.CURVES}


def layouts_section(suite: Suite) -> Any:
    return _run_engine(suite, "layouts", pairs=suite.scoring.pairs)


def engine_section(suite: Suite) -> Any:
    return _run_engine(suite, "service", pairs=suite.in_flight)


def rpc_section(suite: Suite) -> Any:
    return _run_module("bench.scoring.rpc", "--rounds", _rounds(suite))


def margins_section(suite: Suite) -> Any:
    return _run_module("bench.training.margins", "--pairs", str(suite.margin_pairs), "--rounds", _rounds(suite))


def replicas_section(suite: Suite) -> Any:
    return _run_module("bench.scoring.scaling", "--pairs", str(max(32, suite.in_flight)), "--rounds", _rounds(suite))


def _run_engine(suite: Suite, only: str, *, pairs: int) -> Any:
    arguments = ("--only", only, "--pairs", str(pairs), "--rounds", _rounds(suite))
    return _run_module("bench.scoring.engine", *arguments)


def _rounds(suite: Suite) -> str:
    return str(suite.scoring.rounds)


SECTIONS: dict[str, Callable[[Suite], Any]] = {
    "work": work_section,
    "flops": flops_section,
    "train": train_section,
    "score": score_section,
    "vllm": vllm_section,
    "layouts": layouts_section,
    "engine": engine_section,
    "rpc": rpc_section,
    "margins": margins_section,
    "replicas": replicas_section,
    "growth": growth_section,
}


def _run_module(module: str, *arguments: str) -> Any:
    """What a module prints last, as JSON, perhaps behind that word; it runs in a process of its own."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{'-'.join([module, *arguments])}.log").open("wb") as errors:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment(1), check=True)
    starts = (b"{\n", b"[\n", b'{"', b"[{", b"JSON ")
    lines = done.stdout.splitlines(keepends=True)
    # Libraries may print lines before it.
    first = max(number for number, line in enumerate(lines) if line.startswith(starts))
    return json.loads(b"".join(lines[first:]).removeprefix(b"JSON "))


def default_result(facts: Mapping[str, Any], suite: str) -> Path:
    """results/DATE-SUITE-HOST.json, the host by what matters of it."""
    isa = "amx" if "amx_bf16" in facts["isa"] else "avx512" if "avx512f" in facts["isa"] else "avx2"
    return ROOT / "bench" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{suite}-{facts['cores']}core-{isa}.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run")
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", help="of the training section, instead of all")
    parser.add_argument("--rounds", type=int, help="instead of the suite's own")
    parser.add_argument("--result", type=Path, help="where to write; sections that are there and not run stay")
    options = parser.parse_args()
    make, rounds = SUITES[options.suite]
    suite, facts = make(options.rounds or rounds), machine()
    if options.models:
        suite = replace(suite, training={name: suite.training[name] for name in options.models})
    path = options.result or default_result(facts, options.suite)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sections": {}}
    result |= {"format": 1, "suite": options.suite, "machine": facts}
    for name in options.only:
        print(f"== {name}; load average {conditions()['load_average'][0]:.1f}", flush=True)
        start = time.monotonic()
        measured = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "before": conditions()}
        measured |= {"result": SECTIONS[name](suite)}
        if name == "train" and options.models and name in result["sections"]:
            measured["result"] = result["sections"][name]["result"] | measured["result"]
        measured |= {"after": conditions(), "took_s": round(time.monotonic() - start, 1)}
        result["sections"][name] = measured
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
