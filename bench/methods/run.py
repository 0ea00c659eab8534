"""Run the benchmark: `python -m bench.methods.run --help`. It can be stopped at any time and goes on where it was."""

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.methods import bandit, loop, policy, reward_models, rloo, toy
from bench.methods.arms import ARMS
from bench.methods.plan import (
    BANDIT_BETAS,
    BANDIT_MARGIN_ARMS,
    BANDIT_OWN,
    PARTS,
    BanditJob,
    Job,
    LoopJob,
    RewardModelJob,
    ToyJob,
    jobs,
)
from bench.methods.results import done, identity, key, read, to_line

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
CACHE = HERE / "cache"


def execute(job: Job, cache_directory: Path, size: toy.Size = toy.FULL) -> dict[str, Any]:
    """What a job measures. Depends on nothing but the job (and the machine's rounding)."""
    torch.set_num_threads(1)
    if isinstance(job, ToyJob):
        return _toy(job, cache_directory, size)
    if isinstance(job, LoopJob):
        return _loop(job, cache_directory, size)
    if isinstance(job, RewardModelJob):
        return reward_models.describe(
            job.seed, job.tier, job.form, job.reward_model, cache_directory=cache_directory, size=size
        )
    return _bandit(job)


def _toy(job: ToyJob, cache_directory: Path, size: toy.Size) -> dict[str, Any]:
    world = toy.world(job.seed, cache_directory, size)
    _, held_out, training = reward_models.split(world, job.tier, job.form)
    margins, _ = reward_models.margins(
        job.seed, job.tier, job.form, job.reward_model, cache_directory=cache_directory, size=size
    )
    method, config = ARMS[job.arm].at(job.beta)
    weights = policy.train(world, training, margins, method, config, learning_rate=job.learning_rate, epochs=job.epochs)
    if weights is None:
        return {"diverged": True}
    return policy.measure(weights, world, job.form) | policy.implicit_accuracy(weights, held_out, world.shape)


def _loop(job: LoopJob, cache_directory: Path, size: toy.Size) -> dict[str, Any]:
    setting = loop.Setting(job.seed, job.tier, job.form, job.reward_model, cache_directory, size)
    world, (_, held_out, labelled) = setting.world, setting.pairs()
    method, config = ARMS["rm_soft"].at(job.beta)
    if job.arm == "rm_soft":
        margins, _ = reward_models.margins(
            job.seed, job.tier, job.form, job.reward_model, cache_directory=cache_directory, size=size
        )
        weights = policy.train(
            world, labelled, margins, method, config, learning_rate=job.learning_rate, epochs=job.rounds
        )
    elif job.arm == "rloo":
        prompts = labelled.rows[:, 0, : toy.PROMPT_TOKENS]
        weights = rloo.train(
            world, prompts, setting.scorer(), beta=job.beta, learning_rate=job.learning_rate, epochs=job.rounds
        )
    else:
        weights = loop.train(
            setting, loop.LOOPS[job.arm], method, config, learning_rate=job.learning_rate, rounds=job.rounds
        )
    if weights is None:
        return {"diverged": True}
    return policy.measure(weights, world, job.form) | policy.implicit_accuracy(weights, held_out, world.shape)


def _bandit(job: BanditJob) -> dict[str, Any]:
    seeds = list(range(job.first_seed, job.first_seed + job.worlds))
    worlds = bandit.make_worlds(seeds, job.tier, job.form)
    margins = bandit.reward_margins(worlds, seeds, job.tier, job.form, job.reward_model)
    arms = BANDIT_BETAS if job.reward_model == BANDIT_OWN else BANDIT_MARGIN_ARMS
    settings = [bandit.Setting(arm, beta) for arm in arms for beta in BANDIT_BETAS[arm]]
    outcome = bandit.train_all(worlds, seeds, margins, settings, learning_rate=job.learning_rate, steps=job.steps)
    return {
        "reward_model": bandit.describe(worlds, margins),
        "settings": [
            {"arm": setting.arm, "beta": setting.beta}
            | {name: values[index].tolist() for name, values in outcome._asdict().items()}
            for index, setting in enumerate(settings)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines; jobs found in it are skipped")
    parser.add_argument("--cache", type=Path, default=CACHE, help="worlds and reward models")
    parser.add_argument("--processes", type=int, default=2, help="each with one thread")
    options = parser.parse_args(arguments)
    wanted = list(dict.fromkeys(job for part in options.parts.split(",") for job in jobs(part)))
    finished = done(read(options.results))
    todo = [job for job in wanted if key(identity(job)) not in finished]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} jobs are done already", flush=True)
    if todo:
        _run(todo, options)


def _run(todo: Sequence[Job], options: argparse.Namespace) -> None:
    options.results.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are stopped as well
    start = time.monotonic()
    work = partial(_timed, cache_directory=options.cache)
    with (
        multiprocessing.get_context("spawn").Pool(options.processes, _ignore_interrupts) as pool,
        options.results.open("a", encoding="utf-8") as file,
    ):
        for count, (job, values, cpu_s) in enumerate(pool.imap_unordered(work, todo), start=1):
            file.write(to_line(job, values))
            file.flush()
            left = (time.monotonic() - start) / count * (len(todo) - count)
            print(f"[{count}/{len(todo)}, {left / 60:.0f} min left] {_line(job, values)} ({cpu_s:.1f} s)", flush=True)


def _ignore_interrupts() -> None:
    """Control-C reaches the whole process group; the parent alone decides what becomes of its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _timed(job: Job, cache_directory: Path) -> tuple[Job, dict[str, Any], float]:
    start = time.process_time()
    values = execute(job, cache_directory)
    return job, values, time.process_time() - start


def _line(job: Job, values: dict[str, Any]) -> str:
    name = " ".join(str(value) for value in identity(job).values())
    figures = {each: values[each] for each in ("reward", "kl", "grammatical", "accuracy") if each in values}
    return f"{name}: " + ", ".join(f"{each} {value:.3f}" for each, value in figures.items())


if __name__ == "__main__":
    main()
