"""What docker compose would start, as compose itself resolves the files."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from madpo_client.cli import app
from madpo_client.secrets_directory import prepare
from madpo_evaluator.settings import EvaluatorSettings
from madpo_gateway.settings import GatewaySettings
from madpo_reward.settings import RewardSettings
from madpo_trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
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
    ["docker-compose.observability.yml"],
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


@pytest.mark.parametrize("files", OVERRIDES, ids=lambda files: "+".join(files) or "alone")
def test_our_images_are_asked_for_at_no_registry(host, files):
    services = resolved(host, files)["services"]
    for name, service in services.items():
        is_ours = service["image"].startswith("madpo/")
        assert service.get("pull_policy") == ("never" if is_ours else None), name
        assert is_ours or not service.get("build"), name
    assert {name for name, service in services.items() if service.get("build")} == {"prepare", *SETTINGS}


def test_images_of_a_registry_of_ones_own_are_pulled(host, tmp_path):
    settings = tmp_path / "env"
    own = "MADPO_IMAGES=registry.example.org/ml\nMADPO_PULL_POLICY=missing\n"
    settings.write_text((host / ".env").read_text() + own)
    done = compose("config", "--format", "json", env_file=settings)
    service = json.loads(done.stdout)["services"]["trainer"]

    assert service["image"].startswith("registry.example.org/ml/trainer:")
    assert service["pull_policy"] == "missing"


def test_services_that_compute_need_a_gpu_unless_told_otherwise(host):
    for files, device in (([], "cuda"), (["deploy/gpus/4.yml"], "cuda"), (["docker-compose.cpu.yml"], "cpu")):
        services = resolved(host, files)["services"]
        for name in ("reward", "trainer", "evaluator"):
            assert services[name]["environment"][f"MADPO_{name.upper()}_DEVICE"] == device


def cards(services, name):
    (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
    return device["device_ids"]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_all_gpus_are_used_and_shares_of_one_are_no_more_than_it(host, count):
    services = resolved(host, [f"deploy/gpus/{count}.yml"] if count > 1 else [])["services"]
    names = ("reward", "trainer", "evaluator")
    used = [card for name in names for card in cards(services, name)]
    share = {name: float(services[name]["environment"][f"MADPO_{name.upper()}_GPU_MEMORY_FRACTION"]) for name in names}

    assert set(used) == {str(number) for number in range(count)}
    if count == 8:
        assert len(cards(services, "trainer")) == 8
        for card in set(used):
            assert sum(share[name] for name in names if card in cards(services, name)) <= 1
    else:
        assert set(share.values()) == {1.0}


def test_the_scorer_is_set_up_from_the_environment_file(host, tmp_path):
    chosen = {"DTYPE": "bf16", "PRELOAD": '["model-' + "0" * 32 + '"]', "BATCH_TOKENS": "4096"}
    settings = tmp_path / "env"
    lines = [f"MADPO_REWARD_{name}={value}" for name, value in chosen.items()]
    settings.write_text("\n".join([(host / ".env").read_text(), *lines]))
    done = compose("config", "--format", "json", env_file=settings)
    environment = json.loads(done.stdout)["services"]["reward"]["environment"]

    assert {name: environment[f"MADPO_REWARD_{name}"] for name in chosen} == chosen
    unset = resolved(host)["services"]["reward"]["environment"]
    assert [unset.get(f"MADPO_REWARD_{name}") for name in chosen] == [None] * 3


@pytest.mark.parametrize("damage", ["empty client_token", "short client_token", "empty redis_password", "directory"])
def test_an_empty_secret_ends_the_start_at_once(host, tmp_path, damage):
    prepared = runpy.run_path(str(ROOT / "deploy" / "compose" / "prepare.py"))
    mounted = {secret["source"] for secret in resolved(host)["services"]["prepare"]["secrets"]}
    assert mounted == {path.name for path in (host / "secrets").iterdir()} - {"grafana_password"}
    for name in mounted:
        (tmp_path / name).write_text((host / "secrets" / name).read_text())
    assert prepared["short_secret"](tmp_path) is None
    if damage == "directory":  # what an engine makes of a file that is missing
        (tmp_path / "client_token").unlink()
        (tmp_path / "client_token").mkdir()
    else:
        kind, name = damage.split()
        (tmp_path / name).write_text("" if kind == "empty" else "x" * 15)

    assert damage.split()[-1].replace("directory", "client_token") in prepared["short_secret"](tmp_path)


def test_only_the_gateway_is_published_and_only_on_loopback(host):
    services = resolved(host)["services"]

    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert list(published) == ["gateway"]
    assert [(port["host_ip"], port["target"]) for port in published["gateway"]] == [("127.0.0.1", 50051)]
    assert resolved(host)["networks"]["inner"]["internal"] is True
    outside = [name for name, service in services.items() if set(service.get("networks") or {}) - {"inner"}]
    assert outside == ["gateway"]


def test_dashboards_are_for_this_host_and_for_who_has_the_password(host):
    services = resolved(host, ["docker-compose.observability.yml"])["services"]
    added = {name: services[name] for name in services.keys() - resolved(host)["services"].keys()}

    assert added.keys() == {"prometheus", "grafana"}
    for name, service in added.items():
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"], name
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
    # Grafana sees Prometheus and nothing else.
    assert list(added["grafana"]["networks"]) == ["watch"]
    environment = added["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] in {s["target"] for s in added["grafana"]["secrets"]}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, None),
        ({"MADPO_GATEWAY_BIND": "127.0.0.2"}, None),
        ({"MADPO_GATEWAY_BIND": "[::1]"}, None),
        ({"MADPO_GATEWAY_BIND": "0.0.0.0"}, "docker-compose.tls.yml"),
        ({"MADPO_GATEWAY_BIND": "10.0.0.7"}, "in plain text"),
        ({"MADPO_GATEWAY_BIND": "gpu-host"}, "expected an IP address"),
        ({"MADPO_GATEWAY_BIND": "0.0.0.0", "MADPO_GATEWAY_TLS": "true"}, None),
        ({"MADPO_GATEWAY_BIND": "0.0.0.0", "MADPO_GATEWAY_ALLOW_PLAINTEXT": "true"}, None),
    ],
)
def test_the_gateway_is_not_published_in_plain_text_unless_allowed(host, environment, reason):
    declared = resolved(host)["services"]["prepare"]["environment"]
    refusal = runpy.run_path(str(ROOT / "deploy" / "compose" / "prepare.py"))["refusal"](declared | environment)

    assert refusal is None if reason is None else reason in refusal


def test_with_certificates_the_gateway_may_be_published(host):
    files = ["docker-compose.tls.yml"]
    assert resolved(host)["services"]["prepare"]["environment"]["MADPO_GATEWAY_TLS"] == "false"
    assert resolved(host, files)["services"]["prepare"]["environment"]["MADPO_GATEWAY_TLS"] == "true"


def test_every_volume_is_prepared_and_keeps_its_owner(host):
    project = resolved(host, ["docker-compose.observability.yml"])
    mounts = [
        (name, volume)
        for name, service in project["services"].items()
        for volume in service.get("volumes", [])
        if volume["type"] == "volume"
    ]

    assert {volume["source"] for name, volume in mounts if name == "prepare"} == set(project["volumes"])
    # Other images may have a directory there; its owner would be copied to the empty volume.
    others = {name: volume for name, volume in mounts if name not in ("prepare", *SETTINGS)}
    assert others.keys() == {"redis", "minio", "prometheus", "grafana"}
    assert all(volume["volume"]["nocopy"] for volume in others.values())


@pytest.mark.parametrize("files", [[], ["docker-compose.observability.yml"]], ids=["alone", "observability"])
def test_every_container_is_confined(host, files):
    for name, service in resolved(host, files)["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        if name != "prepare":
            assert service["pids_limit"] > 0, name
            assert all("size=" in mount for mount in service["tmpfs"]), name
        if name == "prepare":
            assert service["cap_add"] == ["CHOWN"]
            assert service["network_mode"] == "none"
        else:
            assert not service.get("cap_add"), name
            assert service["user"].split(":")[0] != "0", name
        if name not in ("prepare", "init"):
            assert service["restart"] == "unless-stopped", name


@pytest.mark.parametrize("files", [[], ["docker-compose.cpu.yml"], ["deploy/gpus/8.yml"]], ids=["gpu", "cpu", "gpus"])
def test_memory_is_bounded_where_asked_and_runs_out_for_the_queue_and_the_store_last(host, tmp_path, files):
    settings = tmp_path / "env"
    limits = [f"MADPO_{name.upper()}_MEMORY=3g" for name in SETTINGS]
    settings.write_text("\n".join([(host / ".env").read_text(), *limits]))
    done = compose("config", "--format", "json", files=files, env_file=settings)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]

    assert {name: int(services[name]["mem_limit"]) for name in SETTINGS} == dict.fromkeys(SETTINGS, 3 * 2**30)
    unbounded = resolved(host, files)["services"]
    assert not [name for name, service in unbounded.items() if int(service.get("mem_limit", 0))]
    readiness = {name: service.get("oom_score_adj", 0) for name, service in services.items()}
    assert {name for name in readiness if readiness[name] > 0} == {"reward", "trainer", "evaluator"}


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


def container_commands():
    """What docs/operations.md says to run with docker compose, as lists of arguments."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    return [shlex.split(line.removeprefix("docker compose ")) for line in lines if line.startswith("docker compose ")]


def test_backups_and_restores_of_the_runbook_run_where_the_store_and_the_queue_can_be_reached(host, tmp_path):
    runs = [command for command in container_commands() if command[0] == "run"]

    assert [command[-2:] for command in runs] == [["backup", "/backups"], ["restore", "/backups"]]
    for command in runs:
        entrypoint, service = command[command.index("--entrypoint") + 1 :][:2]
        assert (entrypoint, service) == ("madpo", "gateway")
        help_text = CliRunner().invoke(app, [command[-2], "--help"])
        assert help_text.exit_code == 0
    services = resolved(host)["services"]
    gateway = services["gateway"]
    targets = {secret.get("target", secret["source"]): secret["source"] for secret in gateway["secrets"]}
    given = {name.upper(): (host / "secrets" / source).read_text() for name, source in targets.items()}
    environment = {name: value or "" for name, value in gateway["environment"].items()} | given
    script = "from madpo_client.store_access import find_store; print(find_store(None).settings.store_url)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "s3://madpo"
    # Without --no-deps a restore brings up what it needs, and nothing of ours that would use the store.
    assert set(gateway["depends_on"]) & set(SETTINGS) == set()
    assert {"redis", "init"} <= set(gateway["depends_on"])
    assert "minio" in services["init"]["depends_on"]


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


def stages():
    """Stages of the Dockerfile in their order: name, and instructions from `FROM` on."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found = re.split(r"(?m)^(?=FROM )", text)[1:]
    return {re.match(r"FROM \S+ AS (\S+)\n", stage)[1]: stage for stage in found}


def made_of(target):
    """The stages an image is built from."""
    every = stages()
    sources = re.findall(r"(?m)^FROM (\S+)|--from=(\S+)", every[target])
    return {target}.union(*(made_of(name) for pair in sources for name in pair if name in every))


def test_the_dockerfile_passes_its_linter():
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SETTINGS)
def test_every_service_is_built_as_a_target_of_one_dockerfile(host, name):
    build = resolved(host)["services"][name]["build"]

    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert build["target"] == name
    # Which version an image holds can be read from it.
    assert build["args"]["VERSION"] == resolved(host)["services"][name]["image"].rpartition(":")[2]
    assert 'org.opencontainers.image.version="${VERSION}"' in stages()[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_images_are_confined_checked_and_start_their_service(name):
    every = stages()

    assert re.match(r"FROM (base|torch) ", every[name])
    assert every["torch"].startswith("FROM base ")
    assert every["base"].startswith("FROM scratch ")
    users = [re.findall(r"(?m)^USER (.*)$", every[stage]) for stage in ("base", "torch", name)]
    assert users == [["10001:10001"], [], []]
    assert f'CMD ["python", "-m", "madpo_{name}", "health"]' in every[name]
    assert f'ENTRYPOINT ["tini", "--", "python", "-m", "madpo_{name}"]' in every[name]
    variables = re.findall(rf"MADPO_{name.upper()}_(\w+)=", every[name])
    assert {"HOST", "PORT", "METRICS_PORT", "LOG_FORMAT"} == set(variables)
    assert {variable.lower() for variable in variables} <= SETTINGS[name].model_fields.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_takes_in_no_other_service(name):
    instructions = "".join(stages()[stage] for stage in made_of(name))

    # Whole directories of the checkout would bring other services along, and make a new image of their changes.
    assert not re.search(r"(?m)^(COPY|ADD) (\.|services/?) ", instructions)
    assert re.findall(r"services/\S+", instructions) == [f"services/{name}/madpo_{name}"]


def test_torch_is_one_layer_of_the_images_that_need_it():
    every = list(stages())

    assert {name for name in SETTINGS if "torch" in made_of(name)} == {"reward", "trainer", "evaluator"}
    assert {name for name in SETTINGS if "torch-dependencies" in made_of(name)} == {"reward", "trainer", "evaluator"}
    # Builders that build all stages above their target get no torch for the gateway.
    assert every.index("gateway") < every.index("torch-dependencies")


@pytest.mark.parametrize(
    ("extras", "with_torch"), [(["gateway"], False), (["reward"], True), (["reward", "trainer", "evaluator"], True)]
)
def test_requirements_of_an_image_are_those_of_its_extras(extras, with_torch):
    script = ROOT / "deploy" / "docker" / "requirements.py"
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "pyproject.toml"), *extras], capture_output=True, text=True, check=True
    )
    names = {re.split(r"[^\w.-]", line)[0] for line in done.stdout.splitlines()}

    assert {"grpcio", "redis", "minio", "pyarrow"} <= names
    assert ({"torch", "transformers"} <= names) is with_torch
    assert not names & {"madpo", "pytest", "ruff"}


@pytest.fixture
def object_store(tmp_path):
    """What `init.sh` sees: secrets, the few commands its image has, and an `mc` that notes what it is told."""
    commands, secrets, log = tmp_path / "bin", tmp_path / "secrets", tmp_path / "log"
    commands.mkdir()
    secrets.mkdir()
    for name in ("cat", "mktemp"):
        (commands / name).symlink_to(shutil.which(name))
    for service in SETTINGS:
        (secrets / f"s3_{service}_access_key").write_text(f"user-of-{service}")
        (secrets / f"s3_{service}_secret_key").write_text(f"key-of-{service}")
    (secrets / "minio_root_user").write_text("root")
    (secrets / "minio_root_password").write_text("password-of-root")
    mc = commands / "mc"
    mc.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {log}\n'
        f'case "$*" in *"user add"*) cat >> {tmp_path}/added ;; *"user list"*) cat {tmp_path}/users ;; esac\n'
    )
    mc.chmod(0o755)
    (tmp_path / "users").write_text(
        "enabled    user-of-gateway       madpo-gateway       \n"
        "enabled    replaced-key          madpo-trainer       \n"
        "enabled    a-guest               readonly            \n"
        "enabled    a-very-long-nam...    madpo-trainer       \n"
        "enabled    without-policy                            \n"
    )

    def initialise():
        subprocess.run(
            ["/bin/sh", str(ROOT / "deploy" / "minio" / "init.sh")],
            env={"PATH": str(commands), "SECRETS": str(secrets), "POLICIES": "/policies", "TMPDIR": str(tmp_path)},
            check=True,
            timeout=60,
        )
        return log.read_text().splitlines(), (tmp_path / "added").read_text()

    return initialise


def test_init_makes_a_user_a_service_and_revokes_keys_that_were_replaced(object_store):
    told, added = object_store()

    assert told[0] == "mb --ignore-existing store/madpo"
    for service in SETTINGS:
        assert f"admin policy create store madpo-{service} /policies/{service}.json" in told
        assert f"admin policy attach store madpo-{service} --user user-of-{service}" in told
    assert [line for line in told if "remove" in line] == ["admin user remove store replaced-key"]
    assert added.splitlines() == [line for name in SETTINGS for line in (f"user-of-{name}", f"key-of-{name}")]
    assert not [line for line in told if "key-of" in line or "password" in line]


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
