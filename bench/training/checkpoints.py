"""For how much of its time a training stands for its checkpoints, beside a store that takes its time: one JSON object.

python -m bench.training.checkpoints --upload-s 2
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench import models
from bench.training.ours import JOB, encode, make_loop
from bench.training.task import Task
from madpo.storage.local import LocalStore
from madpo.worker.workspace import Run


class SlowStore(LocalStore):
    """Takes so many seconds for each large file."""

    def __init__(self, root: Path, *, file_s: float) -> None:
        super().__init__(root)
        self._file_s = file_s

    def put_file(self, key: str, path: Path) -> str:
        if path.suffix == ".safetensors":
            time.sleep(self._file_s)
        return super().put_file(key, path)


def measure(*, steps: int, every: int, upload_s: float) -> dict[str, Any]:
    """Seconds of a training and of its steps alone, and the share of the difference."""
    task = Task(size="tiny", batch=2, micro_batch=2, rounds=steps - 1)
    rows = encode(task.pairs(), models.tokenizer(task.model.vocabulary))
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        store = SlowStore(directory / "store", file_s=upload_s)
        loop = make_loop(
            task,
            rows,
            variant="packed",
            run=Run(directory, JOB),
            directory=directory,
            store=store,
            checkpoint_every_steps=every,
        )
        start = time.monotonic()
        loop.execute()
        took_s = time.monotonic() - start
    step_s = loop.state.counters["step_s"]
    return {"took_s": round(took_s, 2), "step_s": round(step_s, 2), "standing_share": round(1 - step_s / took_s, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--upload-s", type=float, default=2.0, help="that the store takes for a file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(vars(arguments) | measure(**vars(arguments))))


if __name__ == "__main__":
    main()
