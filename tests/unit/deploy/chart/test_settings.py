"""Settings reach the services as they understand them, and every one of them can be set."""

from pathlib import Path

import pytest

from madpo.config import load_settings
from tests.unit.deploy.chart.rendering import (
    MULTI_NODE,
    SETTINGS,
    VALUES,
    Document,
    chart,
    component,
    environment,
    render,
    rendered,
    secret_files,
    workloads,
)

# Variables that are not settings of a service.
OTHER_VARIABLES = {"HOME", "MADPO_SECRETS_DIR"}
# Settings that make no sense on a cluster: nobody calls a worker, so it has no clients to tell apart.
POINTLESS = {
    "gateway": set(),
    "reward": set(),
    "trainer": {"tls_client_ca"},
    "evaluator": {"tls_client_ca", "judge_keys"},  # keys are secrets: extraEnv takes them from one
}


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
    of_your_own_redis = {"redis_sentinel_password"}
    keys = {key for workload in workloads(documents) for key in secret_files(workload)}
    assert keys <= shared | own | of_your_own_redis


def test_the_sentinels_of_redis_are_reached_and_named() -> None:
    documents = rendered("behind sentinels")
    for workload in workloads(documents):
        if component(workload) != "reward":
            url = environment(workload)[f"MADPO_{component(workload).upper()}_REDIS_URL"]["value"]
            assert url == "redis+sentinel://one.redis:26379,two.redis:26380/jobs/0"
            assert "redis_sentinel_password" in secret_files(workload)


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
