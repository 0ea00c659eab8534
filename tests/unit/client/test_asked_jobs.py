"""Jobs as the command line asks for them: options, `--set` and `--spec` become one spec."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from madpo.jobs.registry import KINDS
from madpo.types import JobKind
from madpo_client.cli import app
from madpo_client.client import Client
from madpo_client.jobs import Jobs
from tests.unit.client.conftest import Command, Done
from tests.unit.client.recording import JOB_ID, RecordingSession

A_DATASET = "a DATASET_ID or a JOB_ID"
MODEL, DATASET, HELD_OUT = "model-" + "1" * 32, "dataset-" + "2" * 32, "dataset-" + "3" * 32
MODEL_REF, DATASET_REF, HELD_OUT_REF = {"model_id": MODEL}, {"dataset_id": DATASET}, {"dataset_id": HELD_OUT}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> RecordingSession:
    """What commands ask of their gateway is kept here."""
    session = RecordingSession()

    @contextmanager
    def connect(**_: Any) -> Iterator[Any]:
        yield SimpleNamespace(jobs=Jobs(session))  # type: ignore[arg-type]

    monkeypatch.setattr(Client, "from_environment", connect)
    return session


def asked(session: RecordingSession, *arguments: str) -> tuple[JobKind, dict[str, Any]]:
    """Kind and spec that a command sends."""
    result = CliRunner().invoke(app, [*arguments, "--no-wait"])
    assert (result.exit_code, result.stdout) == (0, f"{JOB_ID}\n"), result.output
    kind, spec, _ = session.gateway.requests[-1]
    return kind, spec


def said(done: Done) -> str:
    """What a usage error says, without its frame."""
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("kind", ["supervised", "reward"])
def test_options_and_set_become_one_spec(session: RecordingSession, kind: str) -> None:
    options = (
        "--model",
        MODEL,
        "--dataset",
        DATASET,
        "--learning-rate",
        "5e-6",
        "--batch-size",
        "8",
        "--overlong",
        "drop",
    )
    settings = (
        "--set", "training.optimizer.weight_decay=0.1", "--set", 'training.lora.target_modules=["q_proj","v_proj"]',
        "--set", "training.compile=true", "--set", f"eval_dataset={JOB_ID}",
    )  # fmt: skip

    assert asked(session, "train", kind, *options, *settings) == (
        JobKind(f"{kind}_training"),
        {
            "model": MODEL_REF,
            "dataset": DATASET_REF,
            "eval_dataset": {"job_id": JOB_ID},
            "training": {
                "optimizer": {"learning_rate": 5e-6, "weight_decay": 0.1},
                "global_batch_size": 8,
                "overlong": "drop",
                "lora": {"target_modules": ["q_proj", "v_proj"]},
                "compile": True,
            },
        },
    )


def test_a_policy_has_a_method_and_margins(session: RecordingSession) -> None:
    options = ("--model", f"{JOB_ID}@20", "--dataset", DATASET, "--param", 'tau={"quantile": 0.9}', "--lora-rank", "8")
    settings = (
        "--set",
        "margin.outage_policy=fail",
        "--set",
        "method.params.lam=2",
        "--set",
        "training.lora={alpha: 4}",
    )

    kind, spec = asked(
        session, "train", "policy", *options, "--reward-model", MODEL, "--temperature", "fit", *settings
    )  # fmt: skip

    assert kind is JobKind.POLICY_TRAINING
    assert spec == {
        "model": {"job_id": JOB_ID, "step": 20},
        "dataset": DATASET_REF,
        "method": {"params": {"tau": {"quantile": 0.9}, "lam": 2}},
        "margin": {"reward_model": MODEL_REF, "temperature": "fit", "outage_policy": "fail"},
        "training": {"lora": {"rank": 8, "alpha": 4.0}},
    }


def test_an_evaluation_collects_what_is_given_again_and_again(session: RecordingSession) -> None:
    repeated = (
        "--baseline",
        JOB_ID,
        "--metric",
        "vader",
        "--metric",
        "m",
        "--temperature",
        "0.5",
        "--temperature",
        "1",
    )
    rest = ("--reference", MODEL, "--pairs", HELD_OUT, "--samples", "2", "--set", "sampling.seed=7")

    assert asked(session, "evaluate", "--model", MODEL, "--prompts", DATASET, *repeated, *rest) == (
        JobKind.EVALUATION,
        {
            "model": MODEL_REF,
            "prompt_dataset": DATASET_REF,
            "reference": MODEL_REF,
            "eval_dataset": HELD_OUT_REF,
            "baseline_job_ids": [JOB_ID],
            "metrics": ["vader", "m"],
            "sampling": {"temperatures": [0.5, 1.0], "samples_per_prompt": 2, "seed": 7},
        },
    )


@pytest.mark.parametrize(
    "datasets",
    [("--eval-dataset", HELD_OUT, "--dataset", DATASET), ("--dataset", HELD_OUT, "--training-dataset", DATASET)],
)
def test_a_calibration_is_asked_for_in_new_words_and_in_old(
    session: RecordingSession, datasets: tuple[str, ...]
) -> None:
    spec = {"eval_dataset": HELD_OUT_REF, "dataset": DATASET_REF, "method": {"params": {"tau": "auto"}}}
    assert asked(session, "calibrate", *datasets, "--param", "tau=auto") == (JobKind.CALIBRATION, spec)


@pytest.mark.parametrize("command", [("train", "reward"), ("job", "create", "reward_training")])
def test_a_file_gives_the_spec_and_set_has_the_last_word(
    session: RecordingSession, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        f"model: {MODEL}\ndataset: {DATASET}\neval_dataset: {HELD_OUT}\n"
        "training:\n  epochs: 3\n  lora: {rank: 4}\n  optimizer: {learning_rate: 5e-6}\n"
    )
    settings = ("--set", "training.epochs=1", "--set", "eval_dataset=null", "--set", "training.lora=null")

    kind, spec = asked(session, *command, "--spec", str(file), *settings, "--set", "training.optimizer.eps=1e-6")

    assert kind is JobKind.REWARD_TRAINING
    training = {"epochs": 1.0, "lora": None, "optimizer": {"learning_rate": 5e-6, "eps": 1e-6}}
    assert spec == {"model": MODEL_REF, "dataset": DATASET_REF, "training": training}


def test_every_command_about_a_job_takes_a_file(session: RecordingSession, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"eval_dataset": HELD_OUT}))
    assert asked(session, "calibrate", "--spec", str(file)) == (JobKind.CALIBRATION, {"eval_dataset": HELD_OUT_REF})
    file.write_text(json.dumps({"model": MODEL, "prompt_dataset": DATASET}))
    assert asked(session, "evaluate", "--spec", str(file))[0] is JobKind.EVALUATION


def test_a_job_of_any_kind_is_created_with_its_label_and_what_it_waits_for(session: RecordingSession) -> None:
    settings = ("--set", f"model={MODEL}", "--set", f"dataset={DATASET}", "--name", "look", "--after", JOB_ID)

    kind, spec = asked(session, "job", "create", "dataset_check", *settings)

    assert (kind, spec) == (JobKind.DATASET_CHECK, {"model": MODEL_REF, "dataset": DATASET_REF})
    rest = session.gateway.requests[-1][2]
    assert (rest["display_name"], rest["depends_on"]) == ("look", [JOB_ID])


# ---- what is wrong is named as it was written, without a gateway

GIVEN = ("--model", MODEL, "--dataset", DATASET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--set", "training.optimizer.weight_decai=1"),
            "policy_training has no field training.optimizer.weight_decai; did you mean "
            "training.optimizer.weight_decay? `madpo job fields policy_training` lists them",
        ),
        (("--set", "weight_decay=1"), "no field weight_decay; did you mean training.optimizer.weight_decay?"),
        (("--set", "training.epochs.min=1"), "policy_training has no field training.epochs.min"),
        (("--set", "colour=red"), "policy_training has no field colour; `madpo job fields policy_training` lists them"),
        (("--set", "training.epochs"), "must be FIELD=VALUE, got 'training.epochs'"),
        (("--set", "=1"), "must be FIELD=VALUE, got '=1'"),
        (("--epochs", "1", "--set", "training.epochs=2"), "--epochs and training.epochs contradict each other"),
        (("--set", "training.seed=1", "--set", "training.seed=2"), "training.seed is given twice"),
        (("--param", "tau=1", "--param", "tau=2"), "--param tau is given twice"),
        (("--lora-rank", "8", "--set", "training.lora=null"), "--lora-rank and training.lora contradict each other"),
        (("--set", "model.step=3"), "--model and model.step contradict each other"),
        (("--param", "tau"), "--param tau: write NAME=VALUE"),
    ],
)
def test_a_wrong_setting_is_a_usage_error(
    madpo: Command, closed: str, arguments: tuple[str, ...], message: str
) -> None:
    done = madpo("--server", closed, "train", "policy", *GIVEN, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in said(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--set", "training.optimizer.weight_decay=-1"),
            "training.optimizer.weight_decay: must be a number in [0, 100], got -1",
        ),
        (
            ("--set", "training.lora.target_modules=[q_proj, 2]"),
            "training.lora.target_modules.1: must be text, got 2",
        ),
        (("--set", "training={epochs: 0}"), "training.epochs: must be a number in (0, 10000], got 0"),
        (("--set", "margin.outage_policy=fail"), "margin: reward_service needs reward_model"),
        (("--set", f"eval_dataset={MODEL}"), f"eval_dataset: must be {A_DATASET}, got '{MODEL}'"),
        (("--batch-size", "0"), "--batch-size: must be an integer in [1, 1000000], got 0"),
        (
            ("--reward-model", DATASET),
            f"--reward-model: must be a MODEL_ID, a JOB_ID or JOB_ID@STEP, got '{DATASET}'\n",
        ),
        (("--reward-model", ""), "--reward-model: must be a MODEL_ID, a JOB_ID or JOB_ID@STEP, got ''\n"),
        (("--set", "training.lora=x"), "training.lora: must be a mapping such as {rank: 16}, got 'x'"),
        (("--set", "training.compile=perhaps"), "training.compile: must be true or false, got 'perhaps'"),
        (("--precision", "fp8"), "--precision: must be auto, fp32 or bf16, got 'fp8'"),
        (("--overlong", "cut"), "--overlong: must be error, drop, truncate_prompt or truncate_response, got 'cut'"),
        (("--set", "training.max_steps=many"), "training.max_steps: must be an integer in [1, 10000000], got 'many'"),
        (("--method", "5"), "--method: must be text, got 5"),
        (("--set", "method.params=3"), "method.params: must be a mapping, got 3"),
        (
            ("--set", f"margin={{reward_model: {{model_id: {DATASET}}}}}"),
            f"margin.reward_model.model_id: must be a MODEL_ID, got '{DATASET}'",
        ),
        (("--set", "eval_dataset={}"), "eval_dataset: give exactly one of dataset_id and job_id"),
        (("--set", "training.max_steps=2", "--seed", "-1"), "--seed: must be an integer in [0, 2147483648), got -1"),
    ],
)
def test_a_value_that_the_spec_refuses_is_named_as_it_was_written(
    madpo: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = madpo("train", "policy", *GIVEN, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "model: x\ntraning: {epochs: 1}",
            "{file}, line 2: policy_training has no field traning; did you mean training?",
        ),
        (
            "training: {epochs: 0}",
            "model in {file}: must be given; dataset in {file}: must be given; "
            "training.epochs in {file}, line 1: must be",
        ),
        (
            f"model: {MODEL}\ndataset: {MODEL}",
            f"dataset in {{file}}, line 2: must be {A_DATASET}, got '{MODEL}'",
        ),
        (
            f"model: {MODEL}\ndataset_id: {MODEL}",
            f"dataset in {{file}}, line 2: must be {A_DATASET}, got '{MODEL}'",
        ),
        (f"model: {{id: x}}\ndataset: {DATASET}", "{file}, line 1: policy_training has no field model.id"),
        (
            f"model: {MODEL}\ndataset: {DATASET}\ntraining:\n  optimizer:\n    eps: 1\n    beta1: 2\n",
            "training.optimizer.beta1 in {file}, line 6: must be a number in [0, 1), got 2",
        ),
        (
            f'{{"model": "{MODEL}",\n "dataset": "{DATASET}",\n "training": {{"lora": {{"target_modules": [1]}}}}}}',
            "training.lora.target_modules.0 in {file}, line 3: must be text, got 1",
        ),
        (f"model: {MODEL}\ndataset: {DATASET}\nmodel: x", "{file} is no YAML: line 3: model is given twice"),
    ],
)
def test_a_wrong_field_of_a_file_is_named_with_the_file(
    madpo: Command, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(content)
    done = madpo("job", "create", "policy_training", "--spec", str(file))
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("error: ")) == (1, True)
    assert f"error: {message.format(file=file)}" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("job", "create", "evaluation", "--set", f"model={DATASET}"),
            "model: must be a MODEL_ID, a JOB_ID or JOB_ID@STEP, got",
        ),
        (
            ("evaluate", "--model", MODEL, "--prompts", MODEL),
            f"--prompts: must be {A_DATASET}, got '{MODEL}'",
        ),
        (
            ("evaluate", "--model", MODEL, "--prompts", DATASET, "--baseline", MODEL),
            f"--baseline: must be a JOB_ID, got '{MODEL}'",
        ),
        (
            ("evaluate", "--model", MODEL, "--prompts", DATASET, "--temperature", "11"),
            "--temperature: must be a number in [0, 10], got 11",
        ),
        (("calibrate", "--eval-dataset", MODEL), f"--eval-dataset: must be {A_DATASET}, got '{MODEL}'"),
        (("calibrate", "--dataset", MODEL), f"--dataset: must be {A_DATASET}, got '{MODEL}'"),
        (
            ("calibrate", "--dataset", DATASET, "--training-dataset", MODEL),
            "--training-dataset: must be a DATASET_ID or a JOB_ID, got",
        ),
        (
            ("dataset", "check", DATASET, "--model", DATASET),
            "--model: must be a MODEL_ID, a JOB_ID or JOB_ID@STEP, got",
        ),
        (
            ("dataset", "check", DATASET, "--model", MODEL, "--eval-dataset", MODEL),
            "--eval-dataset: must be a DATASET_ID or a JOB_ID",
        ),
        (
            ("dataset", "check", DATASET, "--model", MODEL, "--max-tokens", "1"),
            "--max-tokens: must be an integer in [2, 16777216]",
        ),
        (("dataset", "check", "rows.jsonl", "--model", "dir", "--overlong", "cut"), "--overlong: must be error, drop,"),
    ],
)
def test_every_command_about_a_job_looks_at_its_spec_before_it_looks_for_a_gateway(
    madpo: Command, command: tuple[str, ...], message: str
) -> None:
    done = madpo(*command)
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert "gateway" not in done.stderr


def test_a_spec_that_is_right_needs_a_gateway(madpo: Command) -> None:
    assert "no madpo gateway is known" in madpo("train", "reward", *GIVEN).stderr


def test_old_names_of_a_calibration_are_told_one_by_one(
    session: RecordingSession, caplog: pytest.LogCaptureFixture
) -> None:
    asked(session, "calibrate", "--dataset", HELD_OUT)
    assert caplog.messages == [
        "--dataset for the held-out pairs is deprecated and goes with the next version: write --eval-dataset"
    ]
    caplog.clear()
    asked(session, "calibrate", "--eval-dataset", HELD_OUT, "--training-dataset", DATASET)
    assert caplog.messages == ["--training-dataset is deprecated and goes with the next version: write --dataset"]


def test_a_check_leaves_to_the_spec_what_is_not_given(session: RecordingSession) -> None:
    command = ("dataset", "check", DATASET, "--model", JOB_ID)
    CliRunner().invoke(app, [*command])
    CliRunner().invoke(app, [*command, "--max-tokens", "64", "--overlong", "drop"])

    (_, default, _), (_, given, _) = session.gateway.requests[-2:]
    assert default == {"dataset": DATASET_REF, "model": {"job_id": JOB_ID, "step": None}}
    assert given == {**default, "max_tokens": 64, "overlong": "drop"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("--model", "x", "policy"), "madpo train policy --model x"),
        (("--model", "x", "reward", "--name", "a b"), "madpo train reward --model x --name 'a b'"),
        (("--model", "x"), "madpo train KIND --model x"),
    ],
)
def test_options_before_the_kind_are_told_where_they_stand_now(madpo: Command, old: tuple[str, ...], new: str) -> None:
    done = madpo("train", *old)
    assert (done.returncode, f"options stand behind the kind: {new}" in said(done)) == (2, True), done.stderr
    assert "supervised" in madpo("train", "--help").stdout


def test_a_part_of_what_the_file_gives_as_text_cannot_be_set(madpo: Command, closed: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"model: {JOB_ID}\n")
    done = madpo("--server", closed, "train", "reward", "--spec", str(tmp_path / "spec.yaml"), "--set", "model.step=3")
    assert done.returncode == 2
    assert f"model.step cannot be set in model: '{JOB_ID}'; set model itself" in said(done)


@pytest.mark.parametrize("command", ["create", "fields"])
def test_a_kind_that_there_is_not_is_refused_with_those_there_are(madpo: Command, command: str) -> None:
    done = madpo("job", command, "policy-training")
    assert done.returncode == 2
    assert "there is no job kind 'policy-training'; did you mean policy_training?" in said(done)
    assert all(kind.value in said(done) for kind in JobKind)


def test_a_job_of_nothing_is_refused(madpo: Command, closed: str) -> None:
    done = madpo("--server", closed, "job", "create", "evaluation")
    assert (done.returncode, "give --spec, --set, or both" in said(done)) == (2, True)


# ---- what there is to be given


@pytest.mark.parametrize("kind", JobKind)
def test_the_fields_of_a_kind_are_listed_as_a_table_and_as_json(madpo: Command, kind: JobKind) -> None:
    listed = {field["name"]: field for field in json.loads(madpo("job", "fields", kind, "--json").stdout)}
    lines = madpo("job", "fields", kind).stdout.splitlines()

    assert lines[0].split() == ["field", "type", "default", "meaning"]
    assert [line.split()[0] for line in lines[1:]] == [*listed]
    required = {name for name, field in KINDS[kind].spec.model_fields.items() if field.is_required()}
    assert {name for name, field in listed.items() if field["required"]} == required
    assert all(field["type"] and field["description"] for field in listed.values())


def test_a_listed_default_is_a_value(madpo: Command) -> None:
    listed = {field["name"]: field for field in json.loads(madpo("job", "fields", "policy_training", "--json").stdout)}
    assert listed["training.optimizer.beta1"] == {
        "name": "training.optimizer.beta1",
        "type": "number in [0, 1)",
        "required": False,
        "default": 0.9,
        "description": "Decay of the running mean of gradients.",
    }
    assert listed["training.lora.target_modules"]["default"] == ["all-linear"]


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        (
            ("train", "policy"),
            ("--learning-rate number in (0, 1] Peak learning rate. [default: 1e-05]", "--method text", "[required]",
             "--precision auto, fp32 or bf16",
             "--lora-rank integer in [1, 16384] Train low-rank adapters of this rank. --checkpoint",
             "leave them out, or cut the prompt's beginning or the responses' end. [default: error]",
             "a dataset as DATASET_ID or JOB_ID; the beginning of an id, a name, or @last",
             "--param NAME=VALUE", "--set FIELD=VALUE",
             "`madpo job fields policy_training` lists all fields"),
            ("null", "--pairs"),
        ),
        (("train", "reward"), ("--model model (causal_lm, reward) The model to start from",), ("--method", "--param")),
        (
            ("evaluate",),
            ("--samples integer in [1, 64]", "--temperature number in [0, 10] S", "[1.0]]", "--baseline JOB_ID"),
            ("--pairs",),
        ),
        (
            ("dataset", "check"),
            ("--max-tokens integer in [2, 16777216]", "[default: 1024]", "[default: error]"),
            ("lists all",),
        ),
        (("calibrate",), ('--temperature number in (0, 1000000] or "fit"', "--eval-dataset"), ("--training-dataset",)),
    ],
)  # fmt: skip
def test_help_has_types_meanings_and_defaults_from_the_spec(
    madpo: Command, command: tuple[str, ...], shown: tuple[str, ...], hidden: tuple[str, ...]
) -> None:
    help_text = " ".join(madpo(*command, "--help").stdout.replace("│", " ").split())
    for text in shown:
        assert text in help_text
    for text in hidden:
        assert text not in help_text


def complete(*words: str) -> list[str]:
    """What a shell offers for the last word of a command."""
    environment = {"COMP_WORDS": " ".join(["madpo", *words]), "COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(app, env={**environment, "_MADPO_COMPLETE": "complete_bash"}, prog_name="madpo")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("train", "policy", "--set", "margin.o"), ["margin.outage_policy=", "margin.outage_budget_s="]),
        (("train", "policy", "--model", "m", "--set", "training.lora.r"), ["training.lora.rank="]),
        (("train", "reward", "--set", "margin."), []),
        (("train", "reward", "--set", "tr"), None),
        (("evaluate", "--set", "sampling.s"), ["sampling.samples_per_prompt=", "sampling.seed="]),
        (("calibrate", "--set", "t"), ["temperature="]),
        (("job", "create", "cal"), ["calibration"]),
        (("job", "fields", "e"), ["evaluation"]),
        (("job", "create", "dataset_check", "--set", "o"), ["overlong="]),
        (("job", "create", "--set", "o"), []),
        (("train", "policy", "--method", "madp"), ["madpo", "madpo_posterior"]),
        (("methods", "show", "apo_a"), ["apo_accel"]),
        # Without a gateway.
        (("job", "show", "@"), ["@last"]),
        (("train", "reward", "--model", ""), ["@last"]),
    ],
)
def test_a_shell_completes_fields_of_the_kind(words: tuple[str, ...], offered: list[str] | None) -> None:
    found = complete(*words)
    if offered is None:
        assert "training.epochs=" in found
        assert "training=" not in found
    else:
        assert found == offered


def test_completion_can_be_installed(madpo: Command) -> None:
    assert "--install-completion" in madpo("--help").stdout
