"""Closed by default: containers, volumes, secrets and the network."""

from tests.unit.deploy.chart.rendering import (
    MULTI_NODE,
    VALUES,
    Document,
    component,
    container,
    environment,
    merge,
    of_kind,
    pod,
    render,
    rendered,
    secret_files,
    selects,
    workloads,
)


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
    assert [peer_component(peer) for peer in callers(policies["reward"], "grpc")] == ["gateway", "trainer", "evaluator"]
    assert callers(policies["trainer"], "grpc") == callers(policies["evaluator"], "grpc") == []
    assert {port for rule in policies["gateway"]["egress"] for port in ports(rule)} == {53, 443, 6379, "grpc"}
    sentinels = {component(policy): policy["spec"] for policy in of_kind(rendered("behind sentinels"), "NetworkPolicy")}
    assert {26379, 26380, 6379} < {port for rule in sentinels["trainer"]["egress"] for port in ports(rule)}
    assert {port for rule in policies["reward"]["egress"] for port in ports(rule)} == {53, 443}
    assert {port for rule in policies["trainer"]["egress"] for port in ports(rule)} == {53, 443, 6379, "grpc"}


def test_a_gateway_without_a_certificate_asks_no_reward_service_that_wants_one() -> None:
    tls = {"secretName": "tls", "requireClientCertificate": True}
    values = {
        "reward": {"tls": tls},
        "trainer": {"tls": {"secretName": "trainer-tls"}},
        "evaluator": {"tls": {"secretName": "evaluator-tls"}},
        "gateway": {"allowPlaintext": True, "tls": {"secretName": ""}},
    }
    documents = tuple(render(merge(VALUES["defaults"], values)))
    policies = {component(policy): policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    assert [peer_component(peer) for peer in callers(policies["reward"], "grpc")] == ["trainer", "evaluator"]
    (gateway,) = [workload for workload in workloads(documents) if component(workload) == "gateway"]
    assert "MADPO_GATEWAY_REWARD_TARGET" not in environment(gateway)
    assert "madpo_gateway_reward_token" not in secret_files(gateway).values()


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
