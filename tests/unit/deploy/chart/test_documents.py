"""What the chart renders is what Kubernetes takes."""

import importlib.metadata
import re

import helm_python
import kubernetes_validate

from tests.unit.deploy.chart.rendering import (
    CHART,
    MULTI_NODE,
    NAMESPACE,
    REQUIRED,
    SETTINGS,
    VALUES,
    Document,
    chart,
    component,
    container,
    merge,
    render,
    rendered,
    workloads,
)

KUBERNETES_VERSIONS = ("1.28", "1.37")
CUSTOM_KINDS = {"ScaledObject", "PodMonitor"}


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


def test_notes_say_what_to_do_next() -> None:
    files = chart().render(values=REQUIRED, name="madpo", namespace=NAMESPACE)
    notes = files["madpo/templates/NOTES.txt"]
    assert f"kubectl --namespace {NAMESPACE} wait pod" in notes
    assert "madpo --server localhost:50050 --token-file client_token --tls-ca ca.crt doctor" in notes
