"""Dashboards and alerts against what the services really export, read by a real Prometheus where there is one."""

import asyncio
import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socket import create_server
from typing import Any, TypeVar

import pytest
import yaml
from pydantic import SecretStr

from madpo.config import WorkerSettings
from madpo_gateway.service import GatewayService
from madpo_gateway.settings import GatewaySettings
from madpo_reward.service import RewardService
from madpo_reward.settings import RewardSettings
from tests.integration.deploy.prometheus import ALERTS, CONFIG, DEPLOY, alerts, needs_prometheus
from tests.integration.deploy.services import (
    PATIENCE_S,
    TOKEN,
    Targets,
    busy,
    get,
    publish_reward_model,
    serving,
    working,
)

BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
T = TypeVar("T")
SCRAPED_LABELS = {"job", "instance"}
"""Prometheus gives them to every series."""


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


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@cache
def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in BOARDS}


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
