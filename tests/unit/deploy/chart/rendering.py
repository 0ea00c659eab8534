"""The Helm chart rendered for several sets of values, and parts of what comes out."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

from madpo.config import ServiceSettings
from madpo_evaluator.settings import EvaluatorSettings
from madpo_gateway.settings import GatewaySettings
from madpo_reward.settings import RewardSettings
from madpo_trainer.settings import TrainerSettings

KUBERNETES = Path(__file__).parents[4] / "deploy" / "kubernetes"
CHART = KUBERNETES / "madpo"
NAMESPACE = "alignment"

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "reward": RewardSettings,
    "trainer": TrainerSettings,
    "evaluator": EvaluatorSettings,
}

Document = dict[str, Any]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = merge(merged[key], value) if both else value
    return merged


REQUIRED: dict[str, Any] = {
    "image": {"registry": "registry.example.com/team"},
    "existingSecret": "madpo",
    "redis": {"host": "redis.example.com"},
    "s3": {"endpoint": "https://s3.example.com"},
    "gateway": {"tls": {"secretName": "gateway-tls"}},
}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": REQUIRED,
    "smallest": merge(
        REQUIRED,
        {
            "redis": {"auth": False},
            "s3": {"endpoint": "http://minio.storage.svc:9000", "prefix": "team/a"},
            "gateway": {"replicas": 1, "allowPlaintext": True, "tls": {"secretName": ""}},
            "networkPolicy": {"metricsFrom": [], "gatewayFrom": []},
        },
        {service: {"gpu": {"count": 0}} for service in ("reward", "trainer", "evaluator")},
    ),
    "behind sentinels": merge(
        REQUIRED,
        {
            "redis": {
                "host": "",
                "sentinel": {"hosts": ["one.redis:26379", "two.redis:26380"], "primary": "jobs", "auth": True},
            }
        },
    ),
    "several nodes, mutual TLS, adapter": merge(
        REQUIRED,
        {
            "redis": {"tls": True, "port": 6380},
            "gateway": {"tls": {"requireClientCertificate": True}, "settings": {"max_upload_bytes": 4 * 1024**3}},
            "reward": {
                "tls": {"secretName": "reward-tls", "requireClientCertificate": True},
                "autoscaling": {"kind": "hpa-prometheus-adapter"},
                "settings": {"preload": ["model-" + 32 * "0"], "dtype": "bf16", "reflection": True},
            },
            "trainer": {
                "nnodes": 2,
                "replicas": 2,
                "tls": {"secretName": "trainer-tls"},
                "scratch": {"storageClassName": "fast"},
                "extraEnv": [{"name": "NCCL_SOCKET_IFNAME", "value": "eth0"}],
            },
            "evaluator": {
                "tls": {"secretName": "evaluator-tls"},
                "autoscaling": {"kind": "hpa-prometheus-adapter"},
                "settings": {"judges": '{"own": {"url": "https://judge.example.com/v1", "model": "judge"}}'},
            },
            "networkPolicy": {"s3To": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        },
    ),
    "keda": merge(
        REQUIRED,
        {
            "reward": {"autoscaling": {"kind": "keda"}},
            "evaluator": {"autoscaling": {"kind": "keda"}},
            "metrics": {
                "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "prometheus": {
                    "serverAddress": "http://prometheus.monitoring.svc:9090",
                    "triggerAuthentication": "auth",
                },
            },
        },
    ),
}
MULTI_NODE = "several nodes, mutual TLS, adapter"


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any]) -> list[Document]:
    files = chart().render(values=dict(values), name="madpo", namespace=NAMESPACE)
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document is not None]


@cache
def rendered(name: str) -> tuple[Document, ...]:
    return tuple(render(VALUES[name]))


def of_kind(documents: tuple[Document, ...], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def workloads(documents: tuple[Document, ...]) -> list[Document]:
    return of_kind(documents, "Deployment", "StatefulSet")


def component(document: Document) -> str:
    return str(document["metadata"]["labels"]["app.kubernetes.io/component"])


def pod(workload: Document) -> Document:
    return dict(workload["spec"]["template"]["spec"])


def container(workload: Document) -> Document:
    (only,) = pod(workload)["containers"]
    assert "initContainers" not in pod(workload)
    return dict(only)


def environment(workload: Document) -> dict[str, Document]:
    names = [entry["name"] for entry in container(workload)["env"]]
    assert len(names) == len(set(names)), f"a variable is set twice: {names}"
    return {entry["name"]: entry for entry in container(workload)["env"]}


def selects(selector: Document, workload: Document) -> bool:
    return selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def secret_files(workload: Document) -> dict[str, str]:
    (volume,) = [volume for volume in pod(workload)["volumes"] if volume["name"] == "secrets"]
    assert volume["secret"]["secretName"] == "madpo"
    return {item["key"]: item["path"] for item in volume["secret"]["items"]}
