"""`python -m bench.soak.run --minutes 30`: a stack under load and kills; exit code 1 when something grows or fails.

In the first half everything is killed now and then. The second half is judged: there only runs are killed, so that what
a service holds more and more of can be told from one life of it.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.meters import conditions
from bench.soak.load import Load
from bench.soak.samples import Sampler, table, trends, use_temporary_directory
from madpo_client.embedded import EmbeddedStack

_CACHE_BYTES = 4 << 20
_WARM_UP = 0.15
"""Of the whole time, after the last kill of a service, before the part that is judged."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    span_s = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="madpo-soak-") as directory:
        work = Path(directory)
        use_temporary_directory(work / "tmp")
        for service in ("TRAINER", "EVALUATOR", "REWARD"):  # so that copies are removed within the time of a soak
            os.environ[f"MADPO_{service}_MAX_CACHE_BYTES"] = str(_CACHE_BYTES)
        with EmbeddedStack(work / "home", threads=1) as stack:
            load, sampler = Load(stack, work, seed=options.seed), Sampler(stack, work / "tmp")
            load.start()
            sampler.start()
            time.sleep(span_s / 2)
            load.end_kills()
            time.sleep(span_s * _WARM_UP)
            judged_from = time.monotonic()
            time.sleep(span_s * (0.5 - _WARM_UP))
            sampler.stop()
            load.stop()
    found = trends([sample for sample in sampler.samples if sample[0] >= judged_from])
    judged_min = span_s * (0.5 - _WARM_UP) / 60
    load_average = ", ".join(f"{each:.1f}" for each in conditions()["load_average"])
    print(f"{options.minutes:g} minutes, load average {load_average}; judged are the last {judged_min:.1f}\n")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(load.done.items())) + "\n")
    print(table(found))
    grown = [trend.name for trend in found if not trend.is_flat]
    for failure in load.failures:
        print(f"failed: {failure}")
    if grown:
        print(f"grown: {', '.join(grown)}")
    return 1 if grown or load.failures or not found else 0


if __name__ == "__main__":
    sys.exit(main())
