"""infinity over HTTP, in turns: python -m bench.peers.infinity VARIANT TASK.

The service runs in an environment of its own (`infinity.txt`, `make bench-peers`). To infinity a model with one label
is a re-ranker: the prompt is the query, the responses are the documents, the tokens and the raw scores are the same.
"""

import os
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench import models
from bench.scoring.processes import answers, ask_all, free_port, measure_service, post_json, wait_until
from bench.scoring.task import ScoringTask
from bench.turns import ROOT, Turns

ENVIRONMENT = ROOT / "out" / "bench" / "infinity"


def start_service(task: ScoringTask, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A service with the task's model; the process and its URL."""
    models.save_reward_model(models.SIZES[task.size], directory / "model")
    port = free_port()
    options = {
        "model-id": str(directory / "model"),
        "served-model-name": "bench",
        "engine": "torch",
        "device": "cpu",
        "dtype": "float32",
        "batch-size": "32",
        "host": "127.0.0.1",
        "port": str(port),
        "log-level": "error",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [str(ENVIRONMENT / "bin" / "infinity_emb"), "v2", *flags, "--no-bettertransformer", "--no-model-warmup"]
    quiet = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet
    return subprocess.Popen(command, env=environment, cwd=directory), f"http://127.0.0.1:{port}"


def rerank(url: str, texts: tuple[str, str, str]) -> list[float]:
    """Raw scores of a pair's responses."""
    prompt, chosen, rejected = texts
    body = {"model": "bench", "query": prompt, "documents": [chosen, rejected], "raw_scores": True}
    results: list[dict[str, Any]] = post_json(f"{url}/rerank", body)["results"]
    return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]


def main() -> None:
    turns = Turns()
    task, _ = ScoringTask.parse()
    with tempfile.TemporaryDirectory() as scratch:
        process, url = start_service(task, Path(scratch))
        try:
            wait_until(lambda: answers(f"{url}/health"), process)
            ask = partial(rerank, url)
            ask_all(ask, task.texts(-1), in_flight=task.in_flight)
            more, number = turns.done({}), 0
            while more:
                work = partial(ask_all, ask, task.texts(number), in_flight=task.in_flight)
                more = turns.done(measure_service(process.pid, work))
                number += 1
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
