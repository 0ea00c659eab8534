"""Autoscaling follows metrics that are really exported."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest
import yaml
from prometheus_client import CollectorRegistry

from madpo.jobs.registry import KINDS
from madpo.ports import JobQueue
from madpo.queue.metrics import QueueCollector
from madpo.types import JobKind
from madpo.worker.metrics import WorkerMetrics
from madpo_reward.metrics import RewardMetrics
from tests.unit.deploy.chart.rendering import (
    KUBERNETES,
    MULTI_NODE,
    NAMESPACE,
    component,
    container,
    of_kind,
    rendered,
    selects,
    workloads,
)


def exported_metrics() -> set[str]:
    registry = CollectorRegistry()
    RewardMetrics(registry)
    WorkerMetrics(registry, "evaluate")
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"], "gauge": [""]}
    queues = QueueCollector(cast(JobQueue, None), cast(asyncio.AbstractEventLoop, None)).describe()
    return {family.name + suffix for family in (*registry.collect(), *queues) for suffix in suffixes[family.type]}


def keda_queries() -> dict[str, str]:
    scaled = of_kind(rendered("keda"), "ScaledObject")
    return {component(document): document["spec"]["triggers"][0]["metadata"]["query"] for document in scaled}


def adapter_queries() -> dict[str, str]:
    rules = yaml.safe_load((KUBERNETES / "prometheus-adapter-values.yaml").read_text())["rules"]["external"]
    matchers = f'namespace="{NAMESPACE}"'
    return {rule["name"]["as"]: rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers) for rule in rules}


def test_scaling_follows_metrics_that_are_really_exported() -> None:
    queries = keda_queries()
    assert set(queries) == {"reward", "evaluator"}
    for query in queries.values():
        names = set(re.findall(r"madpo_\w+", query))
        assert names
        assert names <= exported_metrics()
    assert f'queue="{KINDS[JobKind.EVALUATION].queue}"' in queries["evaluator"]


def test_the_adapter_and_keda_ask_the_same() -> None:
    autoscalers = {component(d): d["spec"] for d in of_kind(rendered(MULTI_NODE), "HorizontalPodAutoscaler")}
    assert set(autoscalers) == set(keda_queries())
    for service, query in keda_queries().items():
        (metric,) = autoscalers[service]["metrics"]
        assert adapter_queries()[metric["external"]["metric"]["name"]] == query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_queries_say_what_they_mean(tmp_path: Path) -> None:
    labels = f'namespace="{NAMESPACE}"'
    histogram = "madpo_reward_score_duration_seconds"

    def wait(pod_name: str, seconds: str, requests: str) -> list[dict[str, str]]:
        series = f'{{phase="queue",{labels},pod="{pod_name}"}}'
        return [
            {"series": f"{histogram}_sum{series}", "values": seconds},
            {"series": f"{histogram}_count{series}", "values": requests},
        ]

    def at_work(pod_name: str, value: str) -> dict[str, str]:
        series = f'madpo_worker_job_info{{queue="evaluate",kind="evaluation",job_id="job-{pod_name}",{labels}}}'
        return {"series": series, "values": value}

    depth = {"series": f'madpo_queue_depth{{queue="evaluate",{labels},pod="a"}}', "values": "3x10"}
    elsewhere = {"series": 'madpo_queue_depth{queue="evaluate",namespace="other"}', "values": "99x10"}
    queries = keda_queries()
    cases: list[tuple[str, list[dict[str, str]], list[float]]] = [
        # Each minute 120 requests wait 60 s together at one replica, 360 requests 60 s at the other.
        (queries["reward"], wait("a", "0+60x10", "0+120x10") + wait("b", "0+60x10", "0+360x10"), [0.25]),
        (queries["reward"], wait("a", "7x10", "40x10"), [0.0]),
        (queries["reward"], [], []),
        (queries["evaluator"], [depth, elsewhere, at_work("a", "1x10"), at_work("b", "1x10")], [5.0]),
        (queries["evaluator"], [depth], [3.0]),
        (queries["evaluator"], [elsewhere], []),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": series,
            "promql_expr_test": [
                {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": v} for v in values]}
            ],
        }
        for query, series, values in cases
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"rule_files": [], "tests": tests}))
    outcome = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(("name", "kind"), [(MULTI_NODE, "HorizontalPodAutoscaler"), ("keda", "ScaledObject")])
def test_an_autoscaler_has_its_deployment_to_itself(name: str, kind: str) -> None:
    deployments = {d["metadata"]["name"]: d for d in of_kind(rendered(name), "Deployment")}
    for document in of_kind(rendered(name), kind):
        target = deployments[document["spec"]["scaleTargetRef"]["name"]]
        assert component(target) == component(document)
        assert "replicas" not in target["spec"]


def test_keda_fails_loudly_when_prometheus_has_nothing_to_say() -> None:
    for document in of_kind(rendered("keda"), "ScaledObject"):
        (trigger,) = document["spec"]["triggers"]
        assert trigger["type"] == "prometheus"
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert trigger["authenticationRef"] == {"name": "auth"}
        assert document["spec"]["minReplicaCount"] >= 1


def test_no_autoscaler_unless_asked_for() -> None:
    assert not of_kind(rendered("defaults"), "HorizontalPodAutoscaler", "ScaledObject", "PodMonitor")
    assert all("replicas" in workload["spec"] for workload in workloads(rendered("defaults")))


def test_the_pod_monitor_scrapes_the_port_every_pod_has() -> None:
    (monitor,) = of_kind(rendered("keda"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    for workload in workloads(rendered("keda")):
        assert selects(monitor["spec"]["selector"]["matchLabels"], workload)
        assert endpoint["port"] in [port["name"] for port in container(workload)["ports"]]
