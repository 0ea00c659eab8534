"""Dashboards and alerts against what the services really export, read by a real Prometheus where there is one."""

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socket import create_server
from typing import Any, TypeVar

import grpc
import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from transformers import LlamaConfig, LlamaForSequenceClassification

from madpo.config import WorkerSettings
from madpo.errors import OverloadedError
from madpo.jobs.registry import KINDS
from madpo.models.load import save_model
from madpo.ports import JobRequest
from madpo.queue.queue import RedisJobQueue, open_queue
from madpo.rpc.channel import call_metadata, open_channel
from madpo.rpc.reward_client import RewardClient
from madpo.rpc.server import RunningServer
from madpo.storage.models import ModelStore
from madpo.storage.open import open_store
from madpo.telemetry.metrics import new_registry, serve_metrics
from madpo.types import JobKind, PreferencePair
from madpo.v1 import dataset_service_pb2, job_service_pb2
from madpo.v1.dataset_service_pb2_grpc import DatasetServiceStub
from madpo.v1.job_service_pb2_grpc import JobServiceStub
from madpo.worker.metrics import TRAINING_FIGURES
from madpo.worker.worker import JobWorker
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings

DEPLOY = Path(__file__).parents[3] / "deploy"
CONFIG, ALERTS = DEPLOY / "prometheus" / "prometheus.yml", DEPLOY / "prometheus" / "alerts.yml"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
TOKEN = "a-token-of-this-test"
QUEUE = KINDS[JobKind.POLICY_TRAINING].queue
PATIENCE_S = 60
T = TypeVar("T")
SCRAPED_LABELS = {"job", "instance"}
"""Prometheus gives them to every series."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: prometheus)",
)

RUN = f"""
    import sys, time
    from pathlib import Path
    from madpo.worker.workspace import Run
    from madpo.types import JobProgress

    run = Run.open(Path(sys.argv[1]))
    run.watch_lifeline()
    step = 0
    while not run.stop_requested:
        step += 4
        figures = {{name: 0.5 for name in {sorted(TRAINING_FIGURES)!r}}}
        figures |= {{"interval/steps": 4, "interval/rows": 32, "interval/step_s": 0.2, "interval/margin_wait_s": 0.05}}
        run.progress(JobProgress(step, 10**6, figures, remaining_s=60.0, phase="training"))
        time.sleep(0.2)
    run.stop()
"""

# ---- the services


@dataclass(frozen=True)
class Targets:
    """Metrics ports by the name of the service."""

    ports: Mapping[str, int]

    def read(self) -> dict[str, list[dict[str, str]]]:
        """Labels of every series by its name, over all services."""
        series: dict[str, list[dict[str, str]]] = {}
        for port in self.ports.values():
            for family in text_string_to_metric_families(get(f"http://127.0.0.1:{port}/metrics").decode()):
                for sample in family.samples:
                    series.setdefault(sample.name, []).append(dict(sample.labels))
        return series


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return bytes(response.read())


@pytest.fixture(scope="module")
def targets(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str, make_toy_tokenizer: Callable[..., Any]
) -> Iterator[Targets]:
    """A gateway, a scorer and a worker in the middle of things, until the end of the module."""
    directory = tmp_path_factory.mktemp("services")
    common = {"store_url": f"file://{directory}/store", "grace_s": 0}
    queue = {"redis_url": SecretStr(redis_url), "redis_namespace": "dashboards"}
    gateway = GatewaySettings(token=SecretStr(TOKEN), scratch=directory / "scratch", **common, **queue)
    scorer = RewardSettings(
        token=SecretStr(TOKEN),
        cache=directory / "cache",
        max_tokens=128,
        max_queue_tokens=4000,
        batch_tokens=512,  # padded, as on a GPU
        **common,
    )
    worker = WorkerSettings(workspace=directory / "work", renew_s=0.1, poll_s=0.05, stop_grace_s=5, **common, **queue)
    model_id = publish_reward_model(directory, worker, make_toy_tokenizer())
    ports: dict[str, int] = {}
    ready, stop = threading.Event(), threading.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            ports["gateway"], grpc_port = await stack.enter_async_context(serving(GatewayService, gateway))
            ports["reward"], reward_port = await stack.enter_async_context(serving(RewardService, scorer))
            ports["trainer"] = await stack.enter_async_context(working(worker, directory))
            await stack.enter_async_context(busy(worker, grpc_port, reward_port, model_id))
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=[main()])
    thread.start()
    while not ready.wait(timeout=0.1):
        assert thread.is_alive(), "the services did not start"
    yield Targets(ports)
    stop.set()
    thread.join()


def publish_reward_model(directory: Path, settings: WorkerSettings, tokenizer: Any) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    save_model(LlamaForSequenceClassification(config), tokenizer, directory / "model")
    models = ModelStore(open_store(settings), directory / "publisher")
    return models.publish(directory / "model", display_name="toy", kind="reward")[0].model_id


@asynccontextmanager
async def serving(service: Callable[..., Any], settings: Any) -> AsyncIterator[tuple[int, int]]:
    """A service and its metrics; gives the ports of both."""
    registry = new_registry()
    async with RunningServer(service(settings, registry), settings, token=TOKEN, registry=registry) as server:
        metrics = serve_metrics(registry, host="127.0.0.1", port=0)
        yield metrics.server_port, server.port
        metrics.shutdown()
        metrics.server_close()


@asynccontextmanager
async def working(settings: WorkerSettings, directory: Path) -> AsyncIterator[int]:
    """A worker at a training that goes on until it is stopped."""
    script = directory / "run.py"
    script.write_text(textwrap.dedent(RUN))
    registry, stop, queue = new_registry(), asyncio.Event(), open_queue(settings)
    worker = JobWorker(
        queue,
        open_store(settings),
        queue_name=QUEUE,
        command=lambda workspace: [sys.executable, str(script), str(workspace)],
        settings=settings,
        registry=registry,
    )
    running = asyncio.create_task(worker.run(stop))
    metrics = serve_metrics(registry, host="127.0.0.1", port=0)
    yield metrics.server_port
    stop.set()
    await running
    metrics.shutdown()
    metrics.server_close()
    await queue.close()


@asynccontextmanager
async def busy(settings: WorkerSettings, gateway_port: int, reward_port: int, model_id: str) -> AsyncIterator[None]:
    """Clients of everything that is counted."""
    queue, client = open_queue(settings), RewardClient(f"127.0.0.1:{reward_port}", token=TOKEN, timeout_s=PATIENCE_S)
    async with open_channel(f"127.0.0.1:{gateway_port}") as channel:
        job_id = await fill(queue)
        clients = [
            asyncio.create_task(score(client, model_id)),
            asyncio.create_task(upload(channel)),
            asyncio.create_task(watch(channel, job_id)),
        ]
        await asyncio.sleep(0)
        yield
        for task in clients:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    await client.close()
    await queue.close()


async def fill(queue: RedisJobQueue) -> str:
    """One job to run, one to stay pending, one that waits for it."""
    first = await queue.create(JobRequest("first", JobKind.POLICY_TRAINING, {}))
    second = await queue.create(JobRequest("second", JobKind.POLICY_TRAINING, {}))
    await queue.create(JobRequest("third", JobKind.EVALUATION, {}, depends_on=(second.job_id,)))
    return first.job_id


async def score(client: RewardClient, model_id: str) -> None:
    pair = PreferencePair("the film", "was good", "was bad")
    for number in range(10**6):
        text = " ".join(["good" if bit == "1" else "bad" for bit in f"{number:b}"])
        await client.score_pairs(model_id, [pair, PreferencePair("the film was", text, ".")])
        too_many = [PreferencePair(f"{number} {place}", "film " * 200, "bad " * 200) for place in range(40)]
        with suppress(OverloadedError):  # as a whole; its parts are taken, and kept in the cache
            await client.score_pairs(model_id, too_many)
        await asyncio.sleep(0.1)


async def upload(channel: grpc.aio.Channel) -> None:
    stub = DatasetServiceStub(channel)  # type: ignore[no-untyped-call]
    for number in range(10**6):
        data = json.dumps({"prompt": str(number)}).encode() + b"\n"
        header = dataset_service_pb2.UploadDatasetHeader(format="jsonl")
        digest = hashlib.sha256(data).hexdigest()
        parts = [{"header": header}, {"chunk": data}, {"sha256": digest}]
        request = iter([dataset_service_pb2.UploadDatasetRequest(**part) for part in parts])
        await stub.UploadDataset(request, metadata=call_metadata(TOKEN))
        await asyncio.sleep(0.3)


async def watch(channel: grpc.aio.Channel, job_id: str) -> None:
    stub = JobServiceStub(channel)  # type: ignore[no-untyped-call]
    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    async for _ in stub.WatchJob(request, metadata=call_metadata(TOKEN)):
        pass


# ---- the dashboards


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@cache
def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in BOARDS}


def alerts() -> dict[str, str]:
    return {
        rule["alert"]: rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
    }


def queries() -> dict[str, dict[str, str]]:
    """Every target of every panel, by where it stands."""
    return {
        f"{name}: {panel['title']} {target['refId']}": target
        for name, board in boards().items()
        for panel in panels(board)
        for target in panel["targets"]
    }


def test_there_are_dashboards_for_jobs_for_training_and_for_scoring() -> None:
    assert list(boards()) == ["jobs", "scoring", "training"]
    assert len({board["uid"] for board in boards().values()}) == 3
    assert len({board["title"] for board in boards().values()}) == 3


@pytest.mark.parametrize("name", ["jobs", "scoring", "training"])
def test_a_dashboard_is_complete_and_laid_out_without_overlap(name: str) -> None:
    board = boards()[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    (variable,) = board["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert variable["current"]["value"] == provisioned["datasources"][0]["uid"]

    for panel in panels(board):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for source in (panel, *panel["targets"]):
            assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboards_are_provisioned_from_where_compose_mounts_them() -> None:
    mounts = yaml.safe_load((DEPLOY.parent / "docker-compose.observability.yml").read_text())["services"]["grafana"]
    targets = {mount.split(":")[1] for mount in mounts["volumes"] if isinstance(mount, str)}
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/madpo.yml").read_text())["providers"]

    assert provider["options"]["path"] in targets
    assert mounts["environment"]["GF_PATHS_PROVISIONING"] in targets
    home = Path(mounts["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (str(home.parent), home.stem in boards()) == (provider["options"]["path"], True)


# ---- names and labels


def mistakes(expression: str, series: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """What a query names that nobody exports."""
    found, known = [], {"le"} | SCRAPED_LABELS
    for name, selector in re.findall(r"\b(madpo_\w+|up)\b(?:\{(.*?)\})?", re.sub(r"\s+", " ", expression)):
        if name == "up":
            continue
        if name not in series:
            found.append(f"{name} is not exported")
            continue
        known |= {label for labels in series[name] for label in labels}
        matchers = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector)
        for label, operator, value in matchers:
            if label not in series[name][0].keys() | SCRAPED_LABELS:
                found.append(f"{name} has no label {label}")
            elif operator in ("=", "=~"):
                pattern = re.escape(value) if operator == "=" else value
                if not any(re.fullmatch(pattern, labels.get(label, "")) for labels in series[name]):
                    found.append(f"{name} has no {label} {value}")
    for labels in re.findall(r"\b(?:by|on|group_left)\s*\((.*?)\)", expression):
        found += [f"no metric has label {label}" for label in re.split(r"[,\s]+", labels) if label not in known]
    return found


def test_queries_name_only_what_is_exported(targets: Targets) -> None:
    series = eventually(targets.read, lambda read: "madpo_training_loss" in read)

    assert mistakes("rate(madpo_reward_score_seconds_total[5m])", series)
    assert mistakes('madpo_queue_depth{name="train"}', series)
    assert mistakes('madpo_queue_depth{queue="training"}', series)
    assert mistakes("sum by (replica) (madpo_queue_depth)", series)
    named = {at: query["expr"] for at, query in queries().items()} | alerts()

    def wrong() -> dict[str, list[str]]:
        series = targets.read()
        return {place: found for place, expression in named.items() if (found := mistakes(expression, series))}

    # A series with labels is there from the first call that it counts.
    assert eventually(wrong, lambda found: not found) == {}


def test_everything_exported_is_shown_or_warned_of(targets: Targets) -> None:
    text = " ".join([*(query["expr"] for query in queries().values()), *alerts().values()])
    families = {
        re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in targets.read() if name.startswith("madpo_")
    }

    unseen = {family for family in families if family not in text}
    assert unseen == {"madpo_build_info"}


def eventually(read: Callable[[], T], holds: Callable[[T], object] = bool) -> T:
    """What is read once it is as it should be."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.1)
    return value


# ---- a real Prometheus


@dataclass(frozen=True)
class Prometheus:
    """A server that scrapes the services."""

    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        reply = json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert reply["status"] == "success", reply
        return reply["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that have a number now."""
        result = self.ask("query", query=expression.replace("$__rate_interval", "30s"))["result"]
        return [series for series in result if series["value"][1] != "NaN"]


@pytest.fixture(scope="module")
def prometheus(targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(ALERTS)]
    # The jobs keep their names; their addresses come from no name service here.
    scraped = {job["job_name"]: job for job in config["scrape_configs"] if job["job_name"] in targets.ports}
    assert scraped.keys() == targets.ports.keys()
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{targets.ports[name]}"]}]} for name in scraped
    ]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
    ]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    found = Prometheus(f"http://127.0.0.1:{port}")

    def scraped_often() -> bool:
        assert server.poll() is None, (directory / "log").read_text()[-2000:]
        with suppress(OSError):
            counts = found.query("min(sum_over_time(up[1m])) >= 8")
            return bool(counts and len(found.query("up == 1")) == len(targets.ports))
        return False

    try:
        eventually(scraped_often)
        yield found
    finally:
        server.terminate()
        server.wait()


@needs_prometheus
def test_every_panel_has_data(prometheus: Prometheus) -> None:
    empty = {place for place, query in queries().items() if not prometheus.query(query["expr"])}

    assert not empty


@needs_prometheus
def test_legends_name_labels_that_the_series_have(prometheus: Prometheus) -> None:
    for place, query in queries().items():
        for label in re.findall(r"\{\{(\w+)\}\}", query["legendFormat"]):
            assert all(series["metric"].get(label) for series in prometheus.query(query["expr"])), (place, label)


@needs_prometheus
def test_figures_are_those_of_the_services(prometheus: Prometheus) -> None:
    def number(expression: str) -> float:
        (series,) = prometheus.query(expression)
        return float(series["value"][1])

    shown = {place: query["expr"] for place, query in queries().items()}
    assert number(shown["jobs: Running A"]) == 1
    assert number(shown["jobs: Pending A"]) == 1
    assert number(shown["jobs: Waiting A"]) == 1
    assert number(shown["jobs: Watch streams A"]) == 1
    assert number(shown["training: Margin wait share A"]) == pytest.approx(0.25)
    assert number(shown["training: Loss A"]) == 0.5
    assert 0 < number(shown["scoring: Cache hits A"]) < 1
    eventually(lambda: number(shown["scoring: Refusals by replica A"]), lambda rate: rate > 0)
    assert 0 < number(shown["scoring: Padding share by replica A"]) < 1


@needs_prometheus
def test_alerts_are_evaluated_without_error_and_see_services_that_are_up(prometheus: Prometheus) -> None:
    def rules() -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]}

    # The worker waits for margins a quarter of its time; nothing else is wrong.
    found = eventually(rules, lambda rules: rules["MadpoMarginWait"]["state"] == "pending")
    assert {name: rule.get("lastError") for name, rule in found.items() if rule["health"] != "ok"} == {}
    assert found.keys() == alerts().keys()
    assert {name for name, rule in found.items() if rule["state"] != "inactive"} == {"MadpoMarginWait"}


@needs_prometheus
def test_promtool_accepts_configuration_and_rules() -> None:
    for command in (["check", "config", str(CONFIG)], ["check", "rules", str(ALERTS)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


# ---- when alerts fire

MINUTES = "x60"
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "MadpoNoGateway": ({}, {'up{job="gateway"}': f"1{MINUTES}"}),
    "MadpoNoScorer": ({'up{job="reward"}': f"0{MINUTES}"}, {'up{job="reward"}': f"1{MINUTES}"}),
    "MadpoReplicaDown": ({'up{job="trainer"}': f"0{MINUTES}"}, {'up{job="prometheus"}': f"0{MINUTES}"}),
    "MadpoQueueAway": ({"madpo_queue_up": f"0{MINUTES}"}, {"madpo_queue_up": f"1{MINUTES}"}),
    "MadpoQueueWait": (
        {'madpo_queue_oldest_pending_seconds{queue="train"}': "3000+60x60"},
        {'madpo_queue_oldest_pending_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoQueueWithoutWorker": (
        {
            'madpo_queue_depth{queue="train"}': f"1{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="evaluate"}': "0+60x60",
        },
        {
            'madpo_queue_depth{queue="train"}': f"1{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="train",instance="a"}': f"0{MINUTES}",
            'madpo_worker_last_answer_timestamp_seconds{queue="train",instance="b"}': "0+60x60",
        },
    ),
    "MadpoWorkerSilent": (
        {'madpo_worker_last_answer_timestamp_seconds{queue="train"}': f"0{MINUTES}"},
        {'madpo_worker_last_answer_timestamp_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoJobWithoutProgress": (
        {'madpo_worker_last_progress_timestamp_seconds{queue="train"}': f"0{MINUTES}"},
        {'madpo_worker_last_progress_timestamp_seconds{queue="train"}': "0+60x60"},
    ),
    "MadpoMarginWait": (
        {
            'madpo_training_seconds_total{kind="policy_training",phase="margin_wait"}': "0+15x60",
            'madpo_training_seconds_total{kind="policy_training",phase="compute"}': "0+45x60",
        },
        {
            'madpo_training_seconds_total{kind="policy_training",phase="margin_wait"}': "0+5x60",
            'madpo_training_seconds_total{kind="policy_training",phase="compute"}': "0+55x60",
        },
    ),
    "MadpoDeadLetter": (
        {'madpo_queue_dead_letters{queue="train"}': "2x50 3x9"},
        {'madpo_queue_dead_letters{queue="train"}': "2x20 3x39"},
    ),
}


@needs_prometheus
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    trouble, peace = CASES[alert]

    def fires(series: Mapping[str, str]) -> bool:
        """Whether it fires after an hour; promtool says so by complaining that none was expected."""
        test = {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": "1h", "alertname": alert, "exp_alerts": []}],
        }
        (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [test]}))
        command = ["promtool", "test", "rules", str(tmp_path / "test.yml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert f"alertname: {alert}" in done.stderr + done.stdout or done.returncode == 0, done.stderr
        return done.returncode != 0

    assert fires(trouble)
    assert not fires(peace)


def test_every_alert_is_tried() -> None:
    assert CASES.keys() == alerts().keys()
