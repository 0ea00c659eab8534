"""vLLM's pooling runner, in turns: python -m bench.peers.vllm VARIANT TASK.

vllm         in process: the same token ids, raw scores, prefix caching on
vllm_server  its own server over HTTP: the same texts, both responses of a pair in one request

Both run in an environment of its own (`vllm.txt`, `make bench-peers`).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import models
from bench.lengths import TokenPair
from bench.meters import Meter
from bench.scoring.processes import answers, ask_all, free_port, measure_service, post_json, wait_until
from bench.scoring.task import ScoringTask
from bench.turns import ROOT, Turns

ENVIRONMENT = ROOT / "out" / "bench" / "vllm"
VARIANTS = ("vllm", "vllm_server")
_BATCH_TOKENS = 4096
_MODEL_TOKENS = 2048
_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def enter() -> None:
    """Go on in vLLM's environment, as the same process."""
    python = ENVIRONMENT / "bin" / "python"
    if Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        return
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))}
    in_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    environment = {**os.environ, **_SETTINGS, **paths, **in_process}
    os.execve(python, [str(python), "-m", "bench.peers.vllm", *sys.argv[1:]], environment)


def load(directory: Path) -> Any:
    """vLLM's engine over a reward model."""
    from vllm import EngineArgs, LLMEngine

    arguments = EngineArgs(
        model=str(directory),
        runner="pooling",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=_MODEL_TOKENS,
        max_num_batched_tokens=_BATCH_TOKENS,
        enable_prefix_caching=True,
        enforce_eager=True,
        disable_log_stats=True,
    )
    return LLMEngine.from_engine_args(arguments)


def score(engine: Any, pairs: Sequence[TokenPair]) -> list[float]:
    """Raw scores: chosen and rejected of the first pair, of the second..."""
    from vllm import PoolingParams

    texts = [pair.prompt + response for pair in pairs for response in (pair.chosen, pair.rejected)]
    for place, ids in enumerate(texts):
        parameters = PoolingParams(task="classify", use_activation=False)
        engine.add_request(str(place), {"prompt_token_ids": ids}, parameters)
    scores = [0.0] * len(texts)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                scores[int(output.request_id)] = float(output.outputs.data.item())
    return scores


@contextmanager
def server(directory: Path) -> Iterator[tuple[int, str]]:
    """vLLM's server over a reward model: its process, and its URL."""
    port = free_port()
    options = {
        "model": str(directory),
        "served-model-name": "bench",
        "runner": "pooling",
        "dtype": "float32",
        "max-model-len": str(_MODEL_TOKENS),
        "max-num-batched-tokens": str(_BATCH_TOKENS),
        "host": "127.0.0.1",
        "port": str(port),
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    flags += ["--enable-prefix-caching", "--enforce-eager", "--disable-log-stats", "--disable-uvicorn-access-log"]
    # Not by the command `vllm`: it looks for the version of a package that the CPU build is not.
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    process = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{url}/health"), process)
        yield process.pid, url
    finally:
        process.terminate()
        process.wait(60)


def classify(url: str, texts: tuple[str, str, str]) -> list[float]:
    """Raw scores of a pair's responses."""
    prompt, *responses = texts
    body = {"model": "bench", "input": [prompt + response for response in responses], "use_activation": False}
    results: list[dict[str, Any]] = post_json(f"{url}/classify", body)["data"]
    return [result["probs"][0] for result in sorted(results, key=lambda result: result["index"])]


def main() -> None:
    turns = Turns()
    task, variant = ScoringTask.parse()
    assert variant in VARIANTS, variant
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        models.save_reward_model(models.SIZES[task.size], directory)
        if variant == "vllm":
            _in_process(turns, task, directory)
        else:
            _over_http(turns, task, directory)


def _in_process(turns: Turns, task: ScoringTask, directory: Path) -> None:
    engine = load(directory)
    score(engine, task.token_ids(-1))
    meter, more, number = Meter(), turns.done({}), 0
    while more:
        texts = task.token_ids(number)
        meter.start()
        scores = score(engine, texts)
        more = turns.done(meter.stop().as_json() | {"scores": scores})
        number += 1


def _over_http(turns: Turns, task: ScoringTask, directory: Path) -> None:
    with server(directory) as (pid, url):
        ask = partial(classify, url)
        ask_all(ask, task.texts(-1), in_flight=task.in_flight)
        more, number = turns.done({}), 0
        while more:
            work = partial(ask_all, ask, task.texts(number), in_flight=task.in_flight)
            more = turns.done(measure_service(pid, work))
            number += 1


if __name__ == "__main__":
    enter()
    main()
