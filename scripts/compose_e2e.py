"""Drives the stack that `scripts/compose_e2e.sh` built: starts, trains, scales, breaks, restarts, loses and stops it.

Every step prints what was seen; the first that is not as it should be ends the run with exit code 1. The summary is
OUT/summary.md. What is broken is broken by the engine's own `kill`, and the training that suffers it must end with the
same model id, a digest of its weights, as the undisturbed one before.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from madpo.types import Dataset, JobState, Model
from madpo_client import Client
from madpo_client.job import JobHandle
from madpo_examples.toy_reviews.language import negative_openings, split_review, true_reward, write_review
from madpo_examples.toy_reviews.model import make_base_model

HOME, OUT = Path(os.environ["COMPOSE_E2E_HOME"]), Path(os.environ["OUT"])
COMPOSE = [*shlex.split(os.environ["COMPOSE"]), "--env-file", str(HOME / ".env")]
ENGINE = shlex.split(os.environ["ENGINE"])
OURS = ("gateway", "reward", "trainer", "evaluator")
STEPS = 200
"""Of the training that is disturbed: long enough to be hit several times."""


class Summary:
    """What was seen, in order."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._start = time.monotonic()

    def saw(self, text: str) -> None:
        """Note a finding."""
        print(f"{time.monotonic() - self._start:7.1f} s  {text}", flush=True)
        self._lines.append(f"- {text}")

    def expect(self, condition: bool, text: str) -> None:
        """Note a finding that must hold."""
        if not condition:
            self.saw(f"NOT SO: {text}")
            self.write()
            sys.exit(1)
        self.saw(text)

    def write(self) -> None:
        """Leave the summary in OUT."""
        (OUT / "summary.md").write_text("\n".join(self._lines) + "\n")


def run(command: Sequence[str], *, check: bool = True) -> str:
    """Standard output of a command; its errors go where ours go."""
    done = subprocess.run([*command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode != 0:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def compose(*arguments: str, check: bool = True) -> str:
    """A compose command on the project."""
    return run([*COMPOSE, *arguments], check=check)


def up(*arguments: str) -> float:
    """Bring everything up and wait until it is healthy; seconds it took."""
    start = time.monotonic()
    compose("up", "--detach", "--wait", "--no-build", "--pull", "never", *arguments)
    return time.monotonic() - start


def containers(service: str) -> list[str]:
    """Ids of a service's running containers."""
    return compose("ps", "--quiet", service).split()


def inspect(container: str) -> dict[str, Any]:
    """What the engine says about a container."""
    value: dict[str, Any] = json.loads(run([*ENGINE, "inspect", container]))[0]
    return value


def metric(container: str, name: str, labels: str = "") -> float:
    """Sum of a counter's series in one container, asked from inside: the port is not published."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics', timeout=5).read().decode())"
    text = run([*ENGINE, "exec", container, "python", "-c", code])
    lines = [line for line in text.splitlines() if line.startswith(name) and labels in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float) -> float:
    """Seconds until a condition held; ends the run when it never did."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > timeout_s:
            sys.exit(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.25)
    return time.monotonic() - start


def connect() -> Client:
    """A client outside of the containers."""
    port = next(line for line in (HOME / ".env").read_text().splitlines() if line.startswith("MADPO_GATEWAY_PORT="))
    return Client(f"127.0.0.1:{port.partition('=')[2]}", token_file=HOME / "secrets" / "client_token")


def preference_rows(count: int) -> list[dict[str, str]]:
    """Toy reviews with one opening and two endings, the better one chosen."""
    rng = random.Random(0)  # noqa: S311 - rows, no secret
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        opening = negative_openings(1, rng)[0]
        endings = [split_review(write_review(rng))[1] for _ in range(2)]
        first, second = sorted(endings, key=lambda ending: true_reward(f"{opening} {ending}"), reverse=True)
        if true_reward(f"{opening} {first}") > true_reward(f"{opening} {second}"):
            rows.append({"prompt": opening, "chosen": first, "rejected": second})
    return rows


class Work:
    """The data, and the jobs that are run on it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        with tempfile.TemporaryDirectory() as directory:
            make_base_model(Path(directory), seed=0)
            self.base: Model = client.models.upload(Path(directory), name="untrained")
        self.pairs: Dataset = client.datasets.upload(preference_rows(3400), name="pairs")
        self.reward = client.jobs.train_reward(
            model=self.base, dataset=self.pairs, training={"max_steps": 40, "max_tokens": 64}
        )

    def policy(self) -> JobHandle:
        """Train a policy that asks for margins all the time; the same call gives the same weights."""
        return self._client.jobs.train_policy(
            model=self.base,
            dataset=self.pairs,
            reward_model=self.reward,
            margin={"lookahead_batches": 1},
            training={"max_steps": STEPS, "checkpoint_every_steps": 10, "global_batch_size": 16, "max_tokens": 64},
        )

    def evaluate(self, model: JobHandle) -> JobHandle:
        """Sample from a policy."""
        return self._client.jobs.evaluate(
            model=model, prompts=self.pairs, reward_model=self.reward, max_prompts=32, sampling={"max_new_tokens": 24}
        )


def at_step(job: JobHandle, step: int) -> None:
    """Wait until a running job has done some steps."""

    def there() -> bool:
        progress = job.refresh().progress
        return job.state.is_terminal or (progress is not None and progress.step >= step)

    wait_until(f"step {step} of {job.id}", there, timeout_s=300)


def scale_while_training(summary: Summary, work: Work) -> JobHandle:
    """Three scorers instead of one, in the middle of a run that asks for margins."""
    job = work.policy()
    at_step(job, 10)
    before = set(containers("reward"))
    start = time.monotonic()
    up("--scale", "reward=3", "--no-recreate")
    new = [container for container in containers("reward") if container not in before]
    healthy_s = time.monotonic() - start
    carrying_s = wait_until(
        "traffic at the new scorers",
        lambda: all(metric(container, "madpo_reward_pairs_total", 'outcome="scored"') > 0 for container in new),
        timeout_s=60,
    )
    summary.expect(len(new) == 2, f"reward scaled from 1 to 3 during a training run, healthy after {healthy_s:.1f} s")
    summary.expect(carrying_s <= 15, f"both new scorers carried traffic {carrying_s:.1f} s after they were healthy")
    job.wait(timeout_s=900)
    failed = sum(
        metric(container, "madpo_rpc_calls_total", 'method="/madpo.v1.RewardService/ScorePairs"')
        - metric(container, "madpo_rpc_calls_total", 'method="/madpo.v1.RewardService/ScorePairs",code="OK"')
        - metric(container, "madpo_rpc_calls_total", 'code="OK",method="/madpo.v1.RewardService/ScorePairs"')
        for container in containers("reward")
    )
    summary.expect(failed == 0, "no scoring call failed meanwhile")
    up("--scale", "reward=1", "--no-recreate")
    return job


def break_while_training(summary: Summary, work: Work, expected: str | None) -> JobHandle:
    """Kill a scorer, the trainer, redis and the store in turn; the run must end as if nothing had been."""
    job = work.policy()
    for number, service in enumerate(("reward", "trainer", "redis", "minio"), start=1):
        at_step(job, STEPS // 6 * number)
        victim = containers(service)[0]
        run([*ENGINE, "kill", victim])
        # An engine does not restart what its own user killed; a crash it does.
        run([*ENGINE, "start", victim])
        summary.saw(f"killed {service} at step {job.job.progress.step if job.job.progress else 0}")
    job.wait(timeout_s=1200)
    result = job.job.result
    attempts = job.job.attempt
    summary.expect(
        result is not None and result.model_id == expected,
        f"the training ended in attempt {attempts} with the very model of the undisturbed run ({expected})",
    )
    return job


def check_walls(summary: Summary) -> None:
    """What can be reached, written and read."""
    published = {
        service: [port for container in containers(service) for port in _published(container)]
        for service in (*OURS, "redis", "minio")
    }
    summary.expect(
        [service for service, ports in published.items() if ports] == ["gateway"],
        f"the gateway's port is the only one published: {published['gateway']}",
    )
    for service in OURS:
        container = containers(service)[0]
        wrote = subprocess.run(
            [*ENGINE, "exec", container, "python", "-c", "open('/not-here', 'w')"], check=False, capture_output=True
        )
        user = run([*ENGINE, "exec", container, "python", "-c", "import os; print(os.getuid())"]).strip()
        summary.expect(wrote.returncode != 0 and user != "0", f"{service}: user {user}, root file system read-only")
    places = {"logs": compose("logs", "--no-color")}
    for service in (*OURS, "redis", "minio"):
        places[f"inspect {service}"] = "".join(json.dumps(inspect(container)) for container in containers(service))
    for service in OURS:
        places[f"image {service}"] = run([*ENGINE, "history", "--no-trunc", inspect(containers(service)[0])["Image"]])
    # User names and key ids say who asks; they open nothing.
    paths = [path for path in (HOME / "secrets").iterdir() if not path.name.endswith(("_user", "_access_key"))]
    found = [f"{path.name} in {place}" for path in paths for place, text in places.items() if path.read_text() in text]
    summary.expect(
        not found and len(paths) >= 8, f"{len(paths)} secrets looked for in logs, inspect and images; found: {found}"
    )


def _published(container: str) -> list[str]:
    ports = inspect(container)["NetworkSettings"]["Ports"] or {}
    return [f"{host['HostIp']}:{host['HostPort']}" for hosts in ports.values() for host in hosts or []]


def check_kept(summary: Summary, *, model_id: str, succeeded: str, evaluation: str, what: str) -> None:
    """That everything is there which the jobs before have left."""
    with connect() as client:
        states = {job.id: job.state for job in client.jobs.list()}
        kept = client.models.get(model_id).model_id == model_id and states[succeeded] is JobState.SUCCEEDED
        report = client.jobs.get(evaluation).report()
        summary.expect(
            kept and bool(report) and len(states) == 5,
            f"{what}: {len(states)} jobs, {len(client.models.list())} models, the dataset, a report",
        )


def cut_power(summary: Summary) -> None:
    """Everything killed at once, and started in the worst order: after a reboot an engine knows of none."""
    below = [container for service in ("redis", "minio") for container in containers(service)]
    ours = [container for service in OURS for container in containers(service)]
    run([*ENGINE, "kill", *ours, *below])
    run([*ENGINE, "start", *ours])
    time.sleep(5)  # of looking for Redis and the store in vain
    run([*ENGINE, "start", *below])
    took_s = wait_until("all to be healthy after a power cut", are_healthy, timeout_s=300)
    summary.saw(f"all killed at once, started with Redis and the store last: all healthy after {took_s:.1f} s")


def are_healthy() -> bool:
    """Whether every container that should run does, and says so."""
    running = {service: containers(service) for service in (*OURS, "redis", "minio")}
    states = [inspect(container)["State"] for ids in running.values() for container in ids]
    return all(running.values()) and all(state.get("Health", {}).get("Status") == "healthy" for state in states)


def back_up(summary: Summary) -> Path:
    """A backup while everything runs, as docs/operations.md has it; the directory that holds it."""
    backups = HOME / "backups"
    backups.mkdir()
    backups.chmod(0o777)
    start = time.monotonic()
    said = compose("run", "--rm", "--no-deps", *madpo_in_gateway(backups, "backup", "/backups"))
    there = list((backups / "snapshots").iterdir())
    summary.expect(len(there) == 1, f"a backup in {time.monotonic() - start:.1f} s: {said.strip().splitlines()[-1]}")
    return backups


def lose_and_restore(summary: Summary, backups: Path) -> None:
    """All volumes gone, and the backup written back before any service of ours starts."""
    compose("down", "--volumes", "--timeout", "30")
    start = time.monotonic()
    compose("run", "--rm", *madpo_in_gateway(backups, "restore", "/backups"))
    summary.saw(f"all volumes lost; restored into new ones in {time.monotonic() - start:.1f} s")
    summary.saw(f"up again: all healthy after {up():.1f} s")


def madpo_in_gateway(backups: Path, *command: str) -> list[str]:
    """Arguments of `compose run` for a madpo command where the store can be reached, and the backups."""
    return ["--volume", f"{backups}:/backups", "--entrypoint", "madpo", "gateway", *command]


def stop_in_time(summary: Summary) -> None:
    """SIGTERM to everything: each ends by itself within its grace, with exit code 0."""
    ours = {container: service for service in OURS for container in containers(service)}
    start = time.monotonic()
    compose("stop")
    took_s = time.monotonic() - start
    codes = {service: inspect(container)["State"]["ExitCode"] for container, service in ours.items()}
    summary.expect(set(codes.values()) == {0}, f"stopped after {took_s:.1f} s, exit codes {codes}")


def main() -> None:
    """The whole story."""
    summary = Summary()
    services = json.loads(compose("config", "--format", "json"))["services"]
    for service in OURS:
        size = int(run([*ENGINE, "image", "inspect", "--format", "{{.Size}}", services[service]["image"]]))
        summary.saw(f"image of {service}: {size / 1e6:.0f} MB")
    summary.saw(f"all healthy {up():.1f} s after `up`")
    with connect() as client:
        start = time.monotonic()
        work = Work(client)
        work.reward.wait(timeout_s=600)
        first = work.policy().wait(timeout_s=900)
        work_s = time.monotonic() - start
        expected = first.result.model_id if first.result else None
        margins = first.result.summary["margins"] if first.result else {}
        summary.expect(
            margins.get("scored_live", 0) > 0,
            f"data pushed from outside, reward model and MADPO policy trained in {work_s:.0f} s; "
            f"{margins.get('scored_live', 0):.0f} margins scored live, {100 * margins['wait_share']:.1f} % waited",
        )
        scaled = scale_while_training(summary, work)
        summary.expect(
            scaled.job.result is not None and scaled.job.result.model_id == expected,
            "the run over three scorers gave the very same model",
        )
        broken = break_while_training(summary, work, expected)
        evaluation = work.evaluate(broken)
        evaluation.wait(timeout_s=600)
        check_walls(summary)
    compose("down")
    summary.saw(f"down, and up again: all healthy after {up():.1f} s")
    left = {"model_id": str(expected), "succeeded": broken.id, "evaluation": evaluation.id}
    check_kept(summary, **left, what="nothing lost")
    cut_power(summary)
    check_kept(summary, **left, what="nothing lost by the cut")
    lose_and_restore(summary, back_up(summary))
    check_kept(summary, **left, what="nothing lost but what was not backed up")
    stop_in_time(summary)
    summary.write()
    print(f"\nall as it should be; summary in {OUT / 'summary.md'}")


if __name__ == "__main__":
    main()
