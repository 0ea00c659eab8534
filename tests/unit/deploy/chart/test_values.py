"""Values that are missing or make no sense are refused by name; each has a place in schema and README."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import helm_python
import pytest

from tests.unit.deploy.chart.rendering import CHART, REQUIRED, SETTINGS, chart, merge, render


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"image": {"registry": ""}}, "image.registry is required"),
        ({"existingSecret": ""}, "existingSecret is required"),
        ({"redis": {"host": ""}}, "redis.host is required"),
        ({"redis": {"sentinel": {"hosts": ["one:26379"]}}}, "redis.sentinel.primary is required"),
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
