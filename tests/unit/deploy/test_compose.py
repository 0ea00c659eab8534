"""What docker compose would start, as compose itself resolves the files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from madpo_client.secrets_directory import prepare
from madpo_evaluator.settings import EvaluatorSettings
from madpo_gateway.settings import GatewaySettings
from madpo_reward.settings import RewardSettings
from madpo_trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[3]
SETTINGS = {
    "gateway": GatewaySettings,
    "reward": RewardSettings,
    "trainer": TrainerSettings,
    "evaluator": EvaluatorSettings,
}
OVERRIDES = [
    [],
    ["docker-compose.cpu.yml"],
    ["docker-compose.tls.yml"],
    ["deploy/gpus/2.yml"],
    ["deploy/gpus/4.yml"],
    ["deploy/gpus/8.yml"],
    ["docker-compose.cpu.yml", "deploy/test/s3-standin.yml"],
]


def tool(name):
    found = Path(sys.executable).parent / name
    return str(found) if found.exists() else shutil.which(name) or pytest.fail(f"{name} is not installed")


def compose(*arguments, files=(), env_file=None):
    command = [tool("docker-compose"), "--project-directory", str(ROOT)]
    command += ["--env-file", str(env_file)] if env_file else []
    for file in ("docker-compose.yml", *files):
        command += ["-f", str(ROOT / file)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin"})


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    prepare(directory)
    return directory


def resolved(host, files=()):
    done = compose("config", "--format", "json", files=files, env_file=host / ".env")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("files", OVERRIDES, ids=lambda files: "+".join(files) or "alone")
def test_every_combination_of_files_is_valid(host, files):
    services = resolved(host, files)["services"]

    assert {"redis", "minio", "init", *SETTINGS} <= set(services)
    gpus = [service for service in SETTINGS if services[service].get("deploy", {}).get("resources")]
    assert gpus == ([] if "docker-compose.cpu.yml" in files else ["reward", "trainer", "evaluator"])


def test_a_start_without_init_ends_in_one_clear_line(tmp_path):
    empty = tmp_path / "env"
    empty.touch()

    done = compose("config", "-q", env_file=empty)

    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert "run madpo init first" in done.stderr


def test_only_the_gateway_is_published_and_only_on_loopback(host):
    services = resolved(host)["services"]

    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert list(published) == ["gateway"]
    assert [(port["host_ip"], port["target"]) for port in published["gateway"]] == [("127.0.0.1", 50051)]
    assert resolved(host)["networks"]["inner"]["internal"] is True
    outside = [name for name, service in services.items() if set(service.get("networks") or {}) - {"inner"}]
    assert outside == ["gateway"]


def test_every_container_is_confined(host):
    for name, service in resolved(host)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        if name == "prepare":
            assert service["cap_add"] == ["CHOWN"]
            assert service["network_mode"] == "none"
        else:
            assert not service.get("cap_add"), name
            assert service["user"].split(":")[0] != "0", name
        if name not in ("prepare", "init"):
            assert service["restart"] == "unless-stopped", name


@pytest.mark.parametrize("files", [[], ["docker-compose.tls.yml"]], ids=["plain", "tls"])
@pytest.mark.parametrize("name", SETTINGS)
def test_variables_and_secret_files_are_settings_of_the_service(host, files, name):
    service, prefix = resolved(host, files)["services"][name], f"MADPO_{name.upper()}_"
    fields = SETTINGS[name].model_fields

    variables = {key.removeprefix(prefix).lower() for key in service["environment"] if key.startswith("MADPO_")}
    targets = {Path(secret.get("target", secret["source"])).name for secret in service["secrets"]}
    secrets = {target.removeprefix(prefix.lower()) for target in targets if target.startswith("madpo_")}

    assert variables <= set(fields)
    assert secrets <= set(fields)
    assert not variables & secrets
    required = {field for field, info in fields.items() if info.is_required()}
    assert required <= variables | secrets
    paths = [value for key, value in service["environment"].items() if "_TLS_" in key]
    assert {Path(path).name for path in paths} <= targets


def test_no_secret_is_part_of_what_compose_starts(host):
    text = json.dumps(resolved(host, ["docker-compose.tls.yml"]))
    values = [path.read_text() for path in (host / "secrets").iterdir()]

    assert len(values) >= 14
    assert not [value for value in values if value in text]


def test_a_trainer_has_longer_to_stop_than_its_run(host):
    for name in ("trainer", "evaluator"):
        service = resolved(host)["services"][name]
        grace = service["stop_grace_period"]
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", grace).groups(default="0")
        asked = service["environment"][f"MADPO_{name.upper()}_STOP_GRACE_S"]
        assert 60 * int(minutes) + int(seconds) > float(asked) + SETTINGS[name].model_fields["grace_s"].default


@pytest.mark.parametrize("name", SETTINGS)
def test_images_are_linted_confined_and_checked(name):
    path = ROOT / "services" / name / "Dockerfile"
    done = subprocess.run([tool("hadolint"), str(path)], capture_output=True, text=True, timeout=60)
    text = path.read_text()

    assert done.returncode == 0, done.stdout
    assert "USER 10001:10001" in text
    assert f'CMD ["python", "-m", "madpo_{name}", "health"]' in text


def test_each_service_may_write_no_more_of_the_store_than_it_does():
    allowed = {}
    for path in (ROOT / "deploy" / "minio" / "policies").iterdir():
        statements = json.loads(path.read_text())["Statement"]
        allowed[path.stem] = {
            statement["Sid"]: [resource.removeprefix("arn:aws:s3:::madpo/") for resource in statement["Resource"]]
            for statement in statements
        }

    assert set(allowed) == set(SETTINGS)
    assert allowed["reward"]["Write"] == ["probes/*"]
    assert "datasets/*" not in allowed["trainer"]["Write"] + allowed["evaluator"]["Write"]
    assert allowed["gateway"]["Write"] == ["*"]
