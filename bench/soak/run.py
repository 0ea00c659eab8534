"""`python -m bench.soak.run --minutes 30`: a stack under load and kills; exit code 1 when something grows or fails.

In the first half everything is killed now and then. The second half is judged: there only runs are killed, so that what
a service holds more and more of can be told from one life of it. What is judged are rounds of jobs; a machine so slow
that there are too few of them is given up to twice the time, and if they are too few even then, that is a failure.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.meters import conditions
from bench.soak.load import Load
from bench.soak.samples import FEWEST_ROUNDS, Sampler, Trend, begun_anew, table, trends, use_temporary_directory
from madpo_client.embedded import EmbeddedStack

_CACHE_BYTES = 1_000_000
"""The base model and little more: what a host keeps at most is reached within a round."""
_WARM_UP_S = 270.0
"""After the last kill of a service, before the part that is judged: so long one takes to come to its level."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="madpo-soak-") as directory:
        load, sampler, judged_from = _run(Path(directory), span_s=options.minutes * 60, seed=options.seed)
    judged = [sample for sample in sampler.samples if sample.at >= judged_from]
    found = trends(judged)
    failures = load.failures + [f"{name} began anew though nobody killed it" for name in begun_anew(judged)]
    if not found:
        failures.append(f"fewer than {FEWEST_ROUNDS} rounds of jobs could be judged: give it more minutes")
    failures += [f"{trend.name} grows" for trend in found if not trend.is_flat]
    figures = {
        "minutes": (sampler.samples[-1].at - sampler.samples[0].at) / 60,
        "judged_minutes": (judged[-1].at - judged[0].at) / 60,
        "rounds": load.rounds,
        "done": dict(sorted(load.done.items())),
        "failures": failures,
        **conditions(),
    }
    print(_text(figures, found))
    if options.json:
        trends_json = [asdict(trend) | {"bound": trend.bound, "is_flat": trend.is_flat} for trend in found]
        options.json.write_text(json.dumps({**figures, "trends": trends_json}, indent=1) + "\n")
    return 1 if failures else 0


def _run(work: Path, *, span_s: float, seed: int) -> tuple[Load, Sampler, float]:
    """What was done and seen, and from when on it is judged."""
    use_temporary_directory(work / "tmp")
    for service in ("TRAINER", "EVALUATOR", "REWARD"):  # so that copies are removed within the time of a soak
        os.environ[f"MADPO_{service}_MAX_CACHE_BYTES"] = str(_CACHE_BYTES)
    with EmbeddedStack(work / "home", threads=1) as stack:
        load = Load(stack, work, seed=seed)
        sampler = Sampler(stack, work / "tmp", round_number=lambda: load.rounds)
        load.start()
        sampler.start()
        time.sleep(span_s / 2)
        load.end_kills()
        time.sleep(_WARM_UP_S)
        judged_from, rounds = time.monotonic(), load.rounds
        time.sleep(max(0.0, span_s / 2 - _WARM_UP_S))
        deadline = time.monotonic() + span_s
        # The round that was on its way when the judgement began, and the one that is when it ends, are cut off.
        while load.rounds - rounds < FEWEST_ROUNDS + 1 and time.monotonic() < deadline and not load.failures:
            time.sleep(1)
        sampler.stop()
        load.stop()
    return load, sampler, judged_from


def _text(figures: dict[str, Any], found: list[Trend]) -> str:
    load_average = ", ".join(f"{each:.1f}" for each in figures["load_average"])
    judged = f"{figures['judged_minutes']:.1f} minutes, {max((each.rounds for each in found), default=0)} rounds"
    lines = [
        f"{figures['minutes']:.1f} minutes, {figures['rounds']} rounds, load average {load_average}",
        f"judged are the last {judged}\n",
        ", ".join(f"{name} {count:,}" for name, count in figures["done"].items()) + "\n",
        table(found),
    ]
    return "\n".join([*lines, *(f"failed: {failure}" for failure in figures["failures"])])


if __name__ == "__main__":
    sys.exit(main())
