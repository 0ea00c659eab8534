"""Calibration on the embedded stack: before any training, and as the first step of one."""

import json

import pytest

from madpo.calibration.report import CalibrationReport
from madpo.types import CheckpointPublished
from madpo_client.cli import main
from madpo_client.embedded import EmbeddedStack
from madpo_examples.toy_reviews.model import make_base_model
from tests.e2e.test_training import kill, preference_rows, training, training_process

PARAMS = {"tau": {"quantile": 0.8}}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"TRAINER_LEASE_S": "6", "TRAINER_RENEW_S": "2", "GATEWAY_LEASE_S": "6"}.items():
            environment.setenv(f"MADPO_{name}", value)
        with EmbeddedStack(tmp_path_factory.mktemp("stack"), threads=1) as stack:
            yield stack


@pytest.fixture(scope="module")
def client(stack):
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def base(client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    make_base_model(directory)
    return client.models.upload(directory, name="tiny")


@pytest.fixture(scope="module")
def pairs(client):
    return client.datasets.upload(preference_rows(96), name="pairs")


@pytest.fixture(scope="module")
def held_out(client):
    rows = preference_rows(160)[96:]
    for row in rows[::4]:  # without some labels against the reward no temperature is best
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return client.datasets.upload(rows, name="held out")


@pytest.fixture(scope="module")
def reward_job(client, base, pairs):
    job = client.jobs.train_reward(model=base, dataset=pairs, training=training(epochs=4, learning_rate=3e-3))
    job.wait()
    return job


def policy_job(client, base, pairs, held_out, reward_job, **fields):
    return client.jobs.train_policy(
        model=base,
        dataset=pairs,
        eval_dataset=held_out,
        params=PARAMS,
        reward_model=reward_job,
        margin={"temperature": "fit"},
        training=training(max_steps=60, checkpoint_every_steps=3, seed=5, **fields),
    )


def test_a_calibration_job_measures_and_a_training_begins_with_the_same_numbers(
    client, stack, base, pairs, held_out, reward_job
):
    before = client.jobs.calibrate(
        reward_model=reward_job, eval_dataset=held_out, dataset=pairs, params=PARAMS, temperature="fit"
    )
    before.wait()
    job = policy_job(client, base, pairs, held_out, reward_job)
    done = job.wait()
    report = job.calibration()

    assert report == before.calibration()
    assert report.held_out.pairs == held_out.rows
    assert (report.margins.of, report.margins.pairs) == ("training", pairs.rows)
    assert report.temperature.rule == "temperature"
    assert done.result.summary["method"]["params"]["tau"] == report.scales["tau"].value
    assert done.result.summary["calibration"]["scales"]["tau"]["rule"] == "quantile"
    assert done.result.summary["margins"]["requested"] == pairs.rows
    names = {entry.path for entry in job.artifacts()}
    assert {"calibration.json", "calibration.png", "metrics.jsonl", "ledger.parquet"} <= names

    # The ledger keeps raw margins; the weights are those of the margins divided.
    import io

    import pyarrow.parquet as pq
    import torch

    from madpo.losses.madpo import madpo_weight

    rows = pq.read_table(io.BytesIO(job.read_artifact("ledger.parquet"))).to_pylist()
    raw = torch.tensor([row["reward_margin"] for row in rows])
    shown = {name: report.params[name] for name in ("c_min", "c_max", "lam", "tau")}
    expected = madpo_weight(raw / report.temperature.value, **shown)
    assert [row["weight"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)

    resumed = policy_job(client, base, pairs, held_out, reward_job, log_every_steps=2)
    for event in resumed.watch():
        if isinstance(event.event, CheckpointPublished):
            break
    early = resumed.calibration()  # there to be read while the job runs
    kill(training_process(stack))
    again = resumed.wait()

    assert again.attempt == 2
    assert early == resumed.calibration() == report
    assert again.result.model_id == done.result.model_id


def test_the_command_prints_a_table_and_writes_the_files(stack, held_out, reward_job, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--reward-model", reward_job.id, "--eval-dataset", held_out.dataset_id, "--param", "tau=auto"]
    monkeypatch.setattr("sys.argv", ["madpo", *server(stack), "calibrate", *arguments, "--out", str(out)])

    with pytest.raises(SystemExit) as ended:
        main()

    assert not ended.value.code
    report = CalibrationReport.model_validate(json.loads((out / "calibration.json").read_text()))
    assert (out / "calibration.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert f"{report.held_out.accuracy:.1%}" in printed
    assert f"{report.scales['tau'].value:.3g} (temperature)" in printed


def server(stack):
    connection = stack.connection()
    return ["--server", connection.server, "--token-file", str(connection.token_file)]
