"""The Helm chart: what it renders is what Kubernetes takes, closed by default, and what the services understand."""

import asyncio
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import helm_python
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from madpo.config import ServiceSettings, load_settings
from madpo.jobs.registry import KINDS
from madpo.ports import JobQueue
from madpo.queue.metrics import QueueCollector
from madpo.types import JobKind
from madpo.worker.metrics import WorkerMetrics
from madpo_evaluator.settings import EvaluatorSettings
from madpo_gateway.settings import GatewaySettings
from madpo_reward.metrics import RewardMetrics
from madpo_reward.settings import RewardSettings
from madpo_trainer.settings import TrainerSettings

KUBERNETES = Path(__file__).parents[3] / "deploy" / "kubernetes"
CHART = KUBERNETES / "madpo"
KUBERNETES_VERSIONS = ("1.28", "1.37")
NAMESPACE = "alignment"

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "reward": RewardSettings,
    "trainer": TrainerSettings,
    "evaluator": EvaluatorSettings,
}
CUSTOM_KINDS = {"ScaledObject", "PodMonitor"}
# Variables that are not settings of a service.
OTHER_VARIABLES = {"HOME", "MADPO_SECRETS_DIR"}
# Settings that make no sense on a cluster: nobody calls a worker, so it has no clients to tell apart.
POINTLESS = {"gateway": set(), "reward": set(), "trainer": {"tls_client_ca"}, "evaluator": {"tls_client_ca"}}

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
            "evaluator": {"tls": {"secretName": "evaluator-tls"}, "autoscaling": {"kind": "hpa-prometheus-adapter"}},
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


@pytest.fixture(params=VALUES)
def documents(request: pytest.FixtureRequest) -> tuple[Document, ...]:
    return rendered(request.param)


def test_every_document_is_valid_for_the_oldest_and_the_newest_kubernetes(documents: tuple[Document, ...]) -> None:
    for document in documents:
        if document["kind"] not in CUSTOM_KINDS:
            for version in KUBERNETES_VERSIONS:
                assert kubernetes_validate.validate(document, version, strict=True) == version


def test_names_are_unique_and_valid(documents: tuple[Document, ...]) -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for _, name in names)


def test_a_long_release_name_leaves_room_for_what_is_appended() -> None:
    files = chart().render(values=VALUES[MULTI_NODE], name="r" * 53, namespace=NAMESPACE)
    for text in files.values():
        for name in re.findall(r"^  name: (\S+)$", text, re.MULTILINE):
            assert len(f"{name}-12345") <= 63


def test_all_four_services_run(documents: tuple[Document, ...]) -> None:
    assert {component(workload) for workload in workloads(documents)} == set(SETTINGS)


def test_images_are_those_of_this_version_unless_named() -> None:
    images = {component(w): container(w)["image"] for w in workloads(rendered("defaults"))}
    assert images == {
        service: f"registry.example.com/team/madpo/{service}:{importlib.metadata.version('madpo')}"
        for service in SETTINGS
    }
    chosen = render(merge(REQUIRED, {"gateway": {"image": "mirror.example.com/gateway:1"}}))
    assert "mirror.example.com/gateway:1" in {container(w)["image"] for w in workloads(tuple(chosen))}


def test_helm_finds_nothing_to_complain_about() -> None:
    report = helm_python.lint(CHART, values=REQUIRED, strict=True)
    assert report["errors"] == []


# Closed by default


def test_containers_cannot_do_more_than_they_must(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        assert container(workload)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
        }
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(workload).keys()
        assert not any("hostPath" in volume for volume in pod(workload)["volumes"])


def test_pods_hold_no_cluster_token_and_get_no_variables_named_like_their_settings(
    documents: tuple[Document, ...],
) -> None:
    (account,) = of_kind(documents, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for workload in workloads(documents):
        assert pod(workload)["automountServiceAccountToken"] is False
        assert pod(workload)["serviceAccountName"] == account["metadata"]["name"]
        assert pod(workload)["enableServiceLinks"] is False


def test_what_is_written_is_on_a_bounded_volume(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
        mounts = {mount["name"]: mount for mount in container(workload)["volumeMounts"]}
        assert volumes.keys() == mounts.keys()
        assert {mounts["scratch"]["mountPath"], mounts["tmp"]["mountPath"]} == {"/scratch", "/tmp"}
        for name, volume in volumes.items():
            if "secret" in volume:
                assert mounts[name]["readOnly"] is True
            elif "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
            else:
                assert volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
        if component(workload) != "gateway":
            assert mounts["shared-memory"]["mountPath"] == "/dev/shm"
            assert volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"


def test_a_pod_sees_its_own_secrets_only_and_only_as_files(documents: tuple[Document, ...]) -> None:
    assert not of_kind(documents, "Secret")
    for workload in workloads(documents):
        service = component(workload)
        assert "envFrom" not in container(workload)
        assert not any("secretKeyRef" in str(entry) for entry in environment(workload).values())
        for key, path in secret_files(workload).items():
            assert path.startswith(f"madpo_{service}_")
            assert not key.startswith("s3_") or key.startswith(f"s3_{service}_")


def secret_files(workload: Document) -> dict[str, str]:
    (volume,) = [volume for volume in pod(workload)["volumes"] if volume["name"] == "secrets"]
    assert volume["secret"]["secretName"] == "madpo"
    return {item["key"]: item["path"] for item in volume["secret"]["items"]}


def test_the_redis_address_carries_no_password(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        assert not any("@" in str(entry.get("value")) for entry in environment(workload).values())


def test_every_pod_is_closed_both_ways_and_ports_open_for_named_peers_only(documents: tuple[Document, ...]) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    for workload in workloads(documents):
        (policy,) = [p for p in policies if selects(p["spec"]["podSelector"]["matchLabels"], workload)]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"] or []:
            assert rule["from"], "an empty list of peers would let everybody in"


def test_who_may_call_whom() -> None:
    policies = {component(policy): policy["spec"] for policy in of_kind(rendered("defaults"), "NetworkPolicy")}
    assert callers(policies["gateway"], "grpc") == [{"podSelector": {}}]
    assert [peer_component(peer) for peer in callers(policies["reward"], "grpc")] == ["trainer", "evaluator"]
    assert callers(policies["trainer"], "grpc") == callers(policies["evaluator"], "grpc") == []
    assert {port for rule in policies["gateway"]["egress"] for port in ports(rule)} == {53, 443, 6379}
    assert {port for rule in policies["reward"]["egress"] for port in ports(rule)} == {53, 443}
    assert {port for rule in policies["trainer"]["egress"] for port in ports(rule)} == {53, 443, 6379, "grpc"}


def test_nodes_of_a_trainer_may_talk_over_any_port_and_nobody_else_may() -> None:
    (trainer,) = [p for p in of_kind(rendered(MULTI_NODE), "NetworkPolicy") if component(p) == "trainer"]
    (open_rule,) = [rule for rule in trainer["spec"]["ingress"] if "ports" not in rule]
    assert [peer_component(peer) for peer in open_rule["from"]] == ["trainer"]


def test_an_object_store_at_a_port_of_its_own_is_reached() -> None:
    (reward,) = [p for p in of_kind(rendered("smallest"), "NetworkPolicy") if component(p) == "reward"]
    assert {port for rule in reward["spec"]["egress"] for port in ports(rule)} == {53, 9000}
    assert not reward["spec"]["ingress"] or callers(reward["spec"], "metrics") == []


def ports(rule: Document) -> list[int | str]:
    return [entry["port"] for entry in rule.get("ports", [])]


def callers(policy: Document, port: str) -> list[Document]:
    return [peer for rule in policy["ingress"] if port in ports(rule) for peer in rule["from"]]


def peer_component(peer: Document) -> str:
    return str(peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"])


# Kept alive, and let go in peace


def test_selectors_match_their_pods(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        assert selects(workload["spec"]["selector"]["matchLabels"], workload)
        others = [other for other in workloads(documents) if other is not workload]
        assert not any(selects(workload["spec"]["selector"]["matchLabels"], other) for other in others)
    for service in of_kind(documents, "Service"):
        chosen = [component(w) for w in workloads(documents) if selects(service["spec"]["selector"], w)]
        assert set(chosen) == {component(service)}


def test_each_workload_has_one_disruption_budget(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        budgets = [
            budget["spec"]
            for budget in of_kind(documents, "PodDisruptionBudget")
            if selects(budget["spec"]["selector"]["matchLabels"], workload)
        ]
        assert [budget["maxUnavailable"] for budget in budgets] == [1]


def test_each_container_is_probed_over_the_protocol_it_speaks(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        serves_tls = f"MADPO_{component(workload).upper()}_TLS_CERT" in environment(workload)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container(workload)[probe]
            if serves_tls:
                assert check["exec"]["command"] == ["python", "-m", f"madpo_{component(workload)}", "health"]
                assert "grpc" not in check
            else:
                assert check["grpc"] == {"port": 50051}


def test_each_container_asks_for_what_it_needs_and_is_bounded(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        resources = container(workload)["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert "memory" in resources["limits"]


def test_gpus_are_given_to_every_service_with_torch_unless_told_otherwise() -> None:
    def gpus(name: str) -> dict[str, int]:
        return {
            component(workload): container(workload)["resources"]["limits"].get("nvidia.com/gpu", 0)
            for workload in workloads(rendered(name))
        }

    assert gpus("defaults") == {"gateway": 0, "reward": 1, "trainer": 1, "evaluator": 1}
    assert set(gpus("smallest").values()) == {0}


def test_a_pod_is_given_longer_than_its_drain_and_its_checkpoint(documents: tuple[Document, ...]) -> None:
    for workload in workloads(documents):
        prefix = f"MADPO_{component(workload).upper()}"
        variables = environment(workload)
        spans = [
            float(variables[name]["value"])
            for name in (f"{prefix}_GRACE_S", f"{prefix}_STOP_GRACE_S")
            if name in variables
        ]
        assert pod(workload)["terminationGracePeriodSeconds"] > sum(spans) + 5


def test_clients_of_the_reward_service_see_every_replica(documents: tuple[Document, ...]) -> None:
    (service,) = [service for service in of_kind(documents, "Service") if component(service) == "reward"]
    assert service["spec"]["clusterIP"] == "None"
    for workload in workloads(documents):
        if component(workload) in ("trainer", "evaluator"):
            target = environment(workload)[f"MADPO_{component(workload).upper()}_REWARD_TARGET"]["value"]
            assert target == f"dns:///{service['metadata']['name']}.{NAMESPACE}.svc:50051"


# Trainers of several nodes


def test_a_trainer_of_one_node_hands_its_gpus_over() -> None:
    (trainer,) = [workload for workload in workloads(rendered("defaults")) if component(workload) == "trainer"]
    assert trainer["kind"] == "Deployment"
    assert trainer["spec"]["strategy"] == {"type": "Recreate"}
    assert "MADPO_TRAINER_NNODES" not in environment(trainer)


def test_nodes_of_a_trainer_start_together_and_know_their_rank_and_their_first() -> None:
    documents = rendered(MULTI_NODE)
    trainers = [workload for workload in workloads(documents) if component(workload) == "trainer"]
    (service,) = [service for service in of_kind(documents, "Service") if component(service) == "trainer"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert len(trainers) == 2
    for trainer in trainers:
        name = trainer["metadata"]["name"]
        assert trainer["kind"] == "StatefulSet"
        assert trainer["spec"]["podManagementPolicy"] == "Parallel"
        assert trainer["spec"]["updateStrategy"] == {"type": "OnDelete"}
        assert trainer["spec"]["replicas"] == int(environment(trainer)["MADPO_TRAINER_NNODES"]["value"]) == 2
        assert trainer["spec"]["serviceName"] == service["metadata"]["name"]
        first = environment(trainer)["MADPO_TRAINER_MASTER_ADDR"]["value"]
        assert first == f"{name}-0.{service['metadata']['name']}.{NAMESPACE}.svc"
        rank = environment(trainer)["MADPO_TRAINER_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert rank == "metadata.labels['apps.kubernetes.io/pod-index']"


# What the services understand


def test_each_service_reads_its_settings_from_what_it_is_given(
    documents: tuple[Document, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload in workloads(documents):
        service = component(workload)
        known = {f"MADPO_{service.upper()}_{name.upper()}" for name in SETTINGS[service].model_fields}
        own = {name for name in environment(workload) if name.startswith("MADPO_")} - OTHER_VARIABLES
        assert own <= known
        assert {path.upper() for path in secret_files(workload).values()} <= known

        directory = tmp_path / workload["metadata"]["name"]
        directory.mkdir()
        for path in secret_files(workload).values():
            (directory / path).write_text("0123456789abcdef")
        with monkeypatch.context() as patched:
            for name, entry in environment(workload).items():
                patched.setenv(name, entry.get("value", "1"))
            patched.setenv("MADPO_SECRETS_DIR", str(directory))
            settings = load_settings(SETTINGS[service])
        assert (settings.host, settings.port, settings.metrics_port) == ("0.0.0.0", 50051, 9464)


def test_secret_keys_are_the_files_that_madpo_init_writes(documents: tuple[Document, ...]) -> None:
    shared = {"client_token", "reward_token", "redis_password"}
    own = {f"s3_{service}_{part}_key" for service in SETTINGS for part in ("access", "secret")}
    assert {key for workload in workloads(documents) for key in secret_files(workload)} <= shared | own


def test_numbers_reach_the_services_as_they_were_written() -> None:
    (gateway,) = [workload for workload in workloads(rendered(MULTI_NODE)) if component(workload) == "gateway"]
    assert environment(gateway)["MADPO_GATEWAY_MAX_UPLOAD_BYTES"]["value"] == "4294967296"


@pytest.mark.parametrize("service", SETTINGS)
def test_what_the_chart_does_not_decide_can_be_set_and_nothing_else(service: str) -> None:
    """A setting that is new belongs in `<service>.settings` of values.schema.json, or in the chart."""
    decided: set[str] = set()
    for values in VALUES.values():
        plain = {
            key: {k: v for k, v in value.items() if k != "settings"} if key in SETTINGS else value
            for key, value in values.items()
        }
        for workload in workloads(tuple(render(plain))):
            if component(workload) == service:
                names = {*environment(workload), *(path.upper() for path in secret_files(workload).values())}
                decided |= {name.removeprefix(f"MADPO_{service.upper()}_").lower() for name in names}
    schema = chart().schema
    assert schema is not None
    free = set(schema["properties"][service]["properties"]["settings"]["properties"])
    assert free == set(SETTINGS[service].model_fields) - decided - POINTLESS[service]


# Autoscaling


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


# What is refused


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"image": {"registry": ""}}, "image.registry is required"),
        ({"existingSecret": ""}, "existingSecret is required"),
        ({"redis": {"host": ""}}, "redis.host is required"),
        ({"s3": {"endpoint": ""}}, "s3.endpoint is required"),
        ({"gateway": {"tls": {"secretName": ""}}}, "gateway.tls.secretName is required"),
        ({"reward": {"autoscaling": {"kind": "keda"}}}, "metrics.prometheus.serverAddress is required"),
        (
            {"reward": {"tls": {"secretName": "tls", "requireClientCertificate": True}}},
            "trainer.tls.secretName is required",
        ),
        ({"reward": {"autoscaling": {"minReplicas": 9}}}, "must be at least minReplicas"),
    ],
)
def test_what_has_no_safe_default_is_asked_for(missing: Mapping[str, Any], message: str) -> None:
    values = merge(REQUIRED, missing)
    # Which service is rendered first is Helm's business, so the other worker has its certificate here.
    if message.startswith("trainer.tls"):
        values = merge(values, {"evaluator": {"tls": {"secretName": "tls"}}})
    with pytest.raises(helm_python.HelmRenderError, match=re.escape(message)):
        render(values)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"trianer": {}}, "trianer"),
        ({"trainer": {"replica": 2}}, "replica"),
        ({"trainer": {"nnodes": 0}}, "/trainer/nnodes"),
        ({"trainer": {"settings": {"pol_s": 1}}}, "pol_s"),
        ({"reward": {"settings": {"token": "in the clear"}}}, "token"),
        ({"reward": {"autoscaling": {"kind": "cpu"}}}, "/reward/autoscaling/kind"),
        ({"reward": {"extraEnv": [{"name": "MADPO_REWARD_TOKEN", "value": "x"}]}}, "/reward/extraEnv/0/name"),
        ({"redis": {"host": "user:password@redis"}}, "/redis/host"),
        ({"s3": {"endpoint": "s3.example.com"}}, "/s3/endpoint"),
        ({"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser"),
        ({"networkPolicy": {"gatewayFrom": [{}]}}, "/networkPolicy/gatewayFrom/0"),
        ({"gateway": {"replicas": "two"}}, "/gateway/replicas"),
    ],
)
def test_values_that_make_no_sense_are_named(wrong: Mapping[str, Any], where: str) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(where)):
        render(merge(REQUIRED, wrong))


def test_every_value_has_a_place_in_the_schema_and_in_the_readme() -> None:
    schema = chart().schema
    assert schema is not None
    readme = (CHART / "README.md").read_text()
    for path in leaves(chart().values):
        service, _, rest = path.partition(".")
        assert f"`{path}`" in readme or (service in SETTINGS and f"`<service>.{rest}`" in readme), path
    for where, node in objects(schema):
        assert node["additionalProperties"] is False, f"{where} takes anything"


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and key != "resources":
            yield from leaves(value, path + ".")
        else:
            yield path


def objects(schema: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of the schema whose keys it names."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("properties"), Mapping) and "type" in schema:
            yield where, schema
        for key, value in schema.items():
            yield from objects(value, f"{where}/{key}")


def test_notes_say_what_to_do_next() -> None:
    files = chart().render(values=REQUIRED, name="madpo", namespace=NAMESPACE)
    notes = files["madpo/templates/NOTES.txt"]
    assert f"kubectl --namespace {NAMESPACE} wait pod" in notes
    assert "madpo --server localhost:50050 --token-file client_token --tls-ca ca.crt doctor" in notes
