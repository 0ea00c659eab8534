"""Training on many pairs: memory of each rank that is its own, and time from finished tokens to the first step.

python -m bench.training.size [--pairs 1000000] [--tokens 500] [--ranks 2] [--method dpo]

The dataset and its tokens go through the real stores; token ids are made up, for the tokenizer has its own figures. The
trainer is the one that a job gets, with a tiny model. The same is run over a handful of pairs: what a rank holds beyond
that is what the pairs cost it. Memory is that of /proc: anonymous and written pages, which no other process shares and
the system cannot drop. Pages of files that are mapped are the page cache's: they are given beside it.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench import models
from bench.models import SIZES
from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.tokenizer import load_tokenizer
from madpo.jobs.training import TrainingParameters
from madpo.ports import Claim
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.storage.tokens import TokenStore
from madpo.types import DatasetKind, Job, JobKind, JobProgress, JobState, PreferencePair
from madpo.worker import program
from madpo.worker.workspace import Workspace

FEW = 256
TOKENIZED = 20_000
MIB = 1 << 20
_POLL_S = 0.1
_WORDS_PER_TOKEN = 0.7


@dataclass
class Figures:
    """What was seen of one run."""

    pairs: int
    own_mib: dict[int, float] = field(default_factory=dict)
    """Most memory of each rank that is its own."""
    mapped_mib: dict[int, float] = field(default_factory=dict)
    """Most pages of files that were in memory for it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """From the start to the begin of each phase, and to the end."""


def store_pairs(store: LocalStore, tokenizer: Any, *, pairs: int, tokens: int, scratch: Path) -> dict[str, Any]:
    """A dataset of pairs and its tokens, two fifths of them the prompt's; the id, and how long each took."""
    rng = np.random.default_rng(0)
    words = " ".join(f"t{number}" for number in rng.integers(4, 2000, round(tokens * _WORDS_PER_TOKEN)))
    third = len(words) // 3

    def rows() -> Iterator[PreferencePair]:
        for row in range(1, pairs + 1):
            yield PreferencePair(
                f"{row} {words[:third]}", f"a {row} {words[third:-third]}", f"b {words[-third:]}", row=row
            )

    start = time.monotonic()
    written, _ = DatasetStore(store).write(rows(), kind=DatasetKind.PREFERENCE, display_name="", scratch=scratch)
    stored = time.monotonic()

    def encoded() -> Iterator[EncodedRow]:
        prompt, chosen = 2 * tokens // 5, 7 * tokens // 10
        for first in range(1, pairs + 1, 1000):
            many = rng.integers(4, 2000, (min(1000, pairs + 1 - first), tokens)).tolist()
            for row, ids in enumerate(many, start=first):
                yield EncodedRow(row, ids[:prompt], (ids[prompt:chosen], ids[chosen:]))

    TokenStore(store).write(written.dataset_id, tokenizer, encoded(), scratch=scratch)
    return {"dataset_id": written.dataset_id, "rows_s": stored - start, "tokens_s": time.monotonic() - stored}


def tokenizing_rate(store: LocalStore, model: Path, dataset_id: str, pairs: int) -> int:
    """Pairs a second, by as many processes as a trainer takes."""
    encoder = RowEncoder(model, load_tokenizer(model))
    start = time.monotonic()
    done = sum(1 for _ in encoder.encode(islice(DatasetStore(store).read(dataset_id), pairs)))
    return round(done / (time.monotonic() - start))


def train(home: Path, *, dataset_id: str, model_id: str, pairs: int, ranks: int, method: str, steps: int) -> Figures:
    """Run a job to its end and watch its ranks."""
    training = TrainingParameters(max_steps=steps, max_tokens=1024, log_every_steps=1, global_batch_size=16)
    spec = {
        "model": {"model_id": model_id},
        "dataset": {"dataset_id": dataset_id},
        "method": {"name": method, "params": {}},
        "training": training.model_dump(mode="json"),
    }
    job = Job(f"job-{pairs:032}", JobKind.POLICY_TRAINING, JobState.RUNNING, spec, attempt=1)
    workspace = Workspace(home / "jobs" / job.job_id, Claim(job, attempt=1, worker_id="bench"))
    figures = Figures(pairs)
    with _launched(workspace, home, ranks) as process:
        start = time.monotonic()
        while process.poll() is None:
            for event in workspace.new_events():
                if isinstance(event, JobProgress):
                    figures.seconds.setdefault(event.phase, round(time.monotonic() - start, 1))
            _watch(process.pid, figures)
            time.sleep(_POLL_S)
        figures.seconds["end"] = round(time.monotonic() - start, 1)
    outcome = workspace.outcome()
    assert outcome is not None, workspace.log_tail()
    assert outcome.kind == "succeeded", outcome.reason
    workspace.close()
    return figures


@contextmanager
def _launched(workspace: Workspace, home: Path, ranks: int) -> Iterator["subprocess.Popen[bytes]"]:
    settings = {
        "store_url": f"file://{home / 'store'}",
        "redis_url": "redis://127.0.0.1:1/0",
        "workspace": str(home / "work"),
        "nproc_per_node": str(ranks),
        "threads": "1",
    }
    environment = os.environ | {f"MADPO_TRAINER_{name.upper()}": value for name, value in settings.items()}
    command = program.command("madpo_trainer.launch", workspace.directory)
    with workspace.log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _watch(launcher: int, figures: Figures) -> None:
    """The ranks that the launcher started, or itself where it is the only one."""
    try:
        parent = psutil.Process(launcher)
        descendants = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in [*descendants, parent]:
        try:
            environment, command = each.environ(), each.cmdline()
            if "madpo_trainer.run" not in command and (each != parent or descendants):
                continue
            rank, memory = environment.get("RANK", "0"), _rollup(each.pid)
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
        for known, name in ((figures.own_mib, "own"), (figures.mapped_mib, "mapped")):
            known[int(rank)] = max(known.get(int(rank), 0.0), round(memory[name], 1))


def _rollup(pid: int) -> dict[str, float]:
    """MiB of a process: pages that nobody else has and that cannot be dropped, and the other pages of files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kib["Private_Dirty"]
    return {"own": own / 1024, "mapped": (kib["Rss"] - own) / 1024}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=500, help="of a pair")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--method", default="dpo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="madpo-size-") as directory:
        home = Path(directory)
        store = LocalStore(home / "store")
        size = SIZES["small"]
        models.causal_lm(size).save_pretrained(home / "model")
        models.tokenizer(size.vocabulary).save_pretrained(home / "model")
        tokenizer = load_tokenizer(home / "model")
        model, _ = ModelStore(store, home / "models").publish(home / "model", display_name="", kind="causal_lm")
        runs: dict[int, Figures] = {}
        made: dict[str, Any] = {}
        for pairs in (FEW, options.pairs):
            made = store_pairs(store, tokenizer, pairs=pairs, tokens=options.tokens, scratch=home / "scratch")
            runs[pairs] = train(
                home,
                dataset_id=made["dataset_id"],
                model_id=model.model_id,
                pairs=pairs,
                ranks=options.ranks,
                method=options.method,
                steps=options.steps,
            )
        few, many = runs[FEW], runs[options.pairs]
        tokenized_per_s = tokenizing_rate(store, home / "model", made["dataset_id"], min(options.pairs, TOKENIZED))
    result = {
        "pairs": options.pairs,
        "tokens_of_a_pair": options.tokens,
        "ranks": options.ranks,
        "own_mib_beyond_few_pairs": {rank: round(many.own_mib[rank] - few.own_mib[rank], 1) for rank in few.own_mib},
        "own_mib": many.own_mib,
        "own_mib_few_pairs": few.own_mib,
        "mapped_mib": many.mapped_mib,
        "first_step_s_after_tokens": round(many.seconds["training"] - many.seconds["tokenizing"], 1),
        "first_step_s_after_tokens_few_pairs": round(few.seconds["training"] - few.seconds["tokenizing"], 1),
        "seconds": many.seconds,
        "tokenized_pairs_per_s": tokenized_per_s,
        "rows_stored_per_s": round(options.pairs / made["rows_s"]),
        "tokens_stored_rows_per_s": round(options.pairs / made["tokens_s"]),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
