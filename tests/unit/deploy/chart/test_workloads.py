"""Workloads are kept alive, let go in peace, and found by their clients; trainers of several nodes."""

from tests.unit.deploy.chart.rendering import (
    MULTI_NODE,
    NAMESPACE,
    Document,
    component,
    container,
    environment,
    of_kind,
    pod,
    rendered,
    selects,
    workloads,
)


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
