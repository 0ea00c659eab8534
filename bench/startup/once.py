"""`python bench/startup/once.py`: a stack put up once and three tiny trainings on it; what that took, as one JSON line.

Of madpo it uses what any checkout has, so that `bench.startup.run` can have each checkout's own interpreter run it.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"prompt": "a 1980s drama . the plot", "completion": f"is {word} ."} for word in ("good", "dull", "weak", "solid")
]
IDLE_S = 30.0
"""Before the last job: time for a worker to get ready on a machine that others use as well."""
TRAINING = {"max_steps": 2, "global_batch_size": 4, "max_tokens": 64}


def main() -> None:
    from bench.meters import process_cpu_s
    from madpo.types import JobProgress, JobState, StateChange
    from madpo_client.embedded import EmbeddedStack
    from madpo_examples.toy_reviews.model import make_base_model

    def job(client: Any, number: int) -> dict[str, float]:
        connection = stack.connection()
        assert connection is not None
        (trainer,) = (each.pid for each in connection.processes if each.name == "trainer")
        cpu_s = process_cpu_s(trainer)
        handle = client.jobs.train_supervised(model=base, dataset=data, training=TRAINING, name=f"job {number}")
        times: dict[str, float] = {}
        for event in handle.watch():
            match event.event:
                case StateChange(JobState.RUNNING):
                    times["claimed"] = time.perf_counter()
                case JobProgress(step) if step and "step" not in times:
                    times["step"] = time.perf_counter()
        assert handle.refresh().state is JobState.SUCCEEDED, handle.job.reason
        return {
            "claim_to_step_s": times["step"] - times["claimed"],
            "claim_to_end_s": time.perf_counter() - times["claimed"],
            "cpu_s": process_cpu_s(trainer) - cpu_s,
        }

    with tempfile.TemporaryDirectory(prefix="madpo-startup-") as directory:
        make_base_model(Path(directory) / "base")
        stack = EmbeddedStack(Path(directory) / "home", threads=1)
        begun = time.perf_counter()
        stack.start()
        try:
            up = {
                "wall_s": time.perf_counter() - begun,
                "cpu_s": process_cpu_s(os.getpid()) - time.process_time(),
            }
            with stack.client() as client:
                base = client.models.upload(Path(directory) / "base", name="tiny")
                data = client.datasets.upload(ROWS, name="rows")
                result = {"up": up, "at_once": job(client, 1), "next": job(client, 2)}
                time.sleep(IDLE_S)
                result["after_idle"] = job(client, 3)
        finally:
            stack.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
