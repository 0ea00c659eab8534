"""Training over several ranks equals training on one: whole runs over real process groups, on toy models."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from madpo.ports import Claim
from madpo.storage.artifacts import open_artifact
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import Completion, DatasetKind, Job, JobKind, JobState, PreferencePair
from madpo.worker.metrics import TRAINING_FIGURES
from madpo.worker.workspace import Outcome, Workspace
from madpo_trainer.memory import note_shortage
from tests.integration.trainer.training_site import LISTS, PAIRS, job_id
from tests.model_directories import save_directory

PATIENCE_S = 400
"""For twenty jobs one after the other, on a machine that others use."""
pytestmark = pytest.mark.timeout(2 * PATIENCE_S + 60)

POISONED = 13
"""A pair with the word whose embedding is not a number in one of the models."""

# Every workspace is one job; all in one process group, since starting one takes seconds.
PROGRAM = """
    import sys
    from pathlib import Path

    from madpo.config import load_settings
    from madpo.errors import MadpoError
    from dataclasses import replace

    from madpo.worker.workspace import Run
    from madpo_trainer.checkpoint_uploads import CheckpointUploads
    from madpo_trainer.ranks import open_ranks, run_rank
    from madpo_trainer.run import TrainingRun
    from madpo_trainer.settings import RankEnvironment, TrainerSettings

    begin = CheckpointUploads.begin

    def begin_and_stop(uploads, step, directory, **options):
        begin(uploads, step, directory, **options)
        if uploads._ranks.is_leader and (directory.parent / "pause").exists():
            (directory.parent / "pause").unlink()
            (directory.parent / "stop").write_text("drain")

    def go_on(workspace):
        if not (workspace / "stop").exists():
            return False
        (workspace / "stop").unlink()
        (workspace / "outcome.json").rename(workspace / "paused.json")
        return True

    CheckpointUploads.begin = begin_and_stop

    def program():
        settings = load_settings(TrainerSettings)
        with open_ranks(RankEnvironment(), timeout_s=60) as ranks:
            for workspace in map(Path, sys.argv[1:]):
                run = Run.open(workspace)
                try:
                    TrainingRun(run, settings, ranks).execute()
                    if ranks.lead(lambda: go_on(workspace)):
                        again = Run(workspace, replace(run.job, attempt=run.job.attempt + 1))
                        TrainingRun(again, settings, ranks).execute()
                except MadpoError as error:
                    (workspace / f"refused-{ranks.rank}").write_text(str(error))
                    if ranks.is_leader:
                        run.fail(str(error))
        return 0

    run_rank(program)
"""

TRAINING = {
    # Three micro-batches a step and one in the last: ranks have different numbers of them, one has none.
    "global_batch_size": 8,
    "micro_batch_tokens": 40,
    "epochs": 2.1,
    "max_tokens": 32,
    # Adam brings every gradient to one size: with a small eps also those that are nothing but rounding.
    "optimizer": {"learning_rate": 1e-3, "eps": 1e-3},
}
POLICY = {
    "method": {"name": "madpo", "params": {"tau": {"quantile": 0.6}, "normalize_weights": True}},
    "margin": {"source": "dataset", "temperature": 1.5},
}


@dataclass(frozen=True)
class Trained:
    """What the jobs left that a number of ranks ran."""

    home: Path
    outcomes: dict[str, Outcome]

    @property
    def store(self):
        return LocalStore(self.home / "store")

    def weights(self, name):
        directory = ModelStore(self.store, self.home / "cache").fetch(self.outcomes[name].result.model_id)
        return load_file(next(directory.glob("*.safetensors")))

    def artifact(self, name, path):
        with open_artifact(self.store, job_id(name), path) as file:
            return file.read()

    def references(self):
        return {
            entry.key: self.store.get(entry.key)
            for entry in self.store.list("reference_logps/")
            if entry.key.endswith(".safetensors")
        }


INPUTS = {
    "tokens": ("x_sgdpo", {}),
    "list": ("irpo", {}),
    "gold": ("tpo", {"beta": 0.1}),
    "mismatched": ("kto", {}),
    "state": ("beta_dpo", {"alpha": 2.0}),
    "follows": ("tr_dpo", {"every": 2, "alpha": 0.3}),
    "moves on": ("apo_accel", {"iteration_steps": 2}),
}
"""A method of every sort of input."""

SHARDED = {"sharding": "fsdp", "activation_checkpointing": True, "checkpoint_every_steps": 3}
PAUSED = "sharded"
"""A job that stops after its first checkpoint and goes on from there."""


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_toy_lm, make_toy_tokenizer):
    """A store with data and models, and the jobs to do."""
    home = tmp_path_factory.mktemp("site")
    store = LocalStore(home / "store")
    models, datasets = ModelStore(store, home / "cache"), DatasetStore(store)

    def publish(name, model):
        save_directory(model, make_toy_tokenizer(), home / name)
        return {"model_id": models.publish(home / name, display_name=name, kind="causal_lm")[0].model_id}

    def write(rows, kind):
        return datasets.write(rows, kind=kind, display_name="data", scratch=home / "scratch")[0].dataset_id

    sound, poisoned = make_toy_lm(), make_toy_lm()
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[make_toy_tokenizer().convert_tokens_to_ids("bad")] = float("nan")
    model = publish("model", sound)
    pairs = write(PAIRS, DatasetKind.PREFERENCE)
    spoilt = [
        PreferencePair(pair.prompt, "bad .", pair.rejected, pair.reward_margin, pair.row)
        if pair.row == POISONED
        else pair
        for pair in PAIRS
    ]
    lists = write(LISTS, DatasetKind.LIST)
    completions = write([Completion(pair.prompt, pair.chosen, row=pair.row) for pair in PAIRS], DatasetKind.COMPLETION)
    lora = {**TRAINING, "lora": {"rank": 2, "dropout": 0.3, "target_modules": ["q_proj"]}}
    jobs = {
        "supervised": (JobKind.SUPERVISED_TRAINING, {"model": model, "dataset": completions}),
        "dropout": (JobKind.SUPERVISED_TRAINING, {"model": model, "dataset": completions, "training": lora}),
        "reward": (JobKind.REWARD_TRAINING, {"model": model, "dataset": pairs}),
        "policy": (JobKind.POLICY_TRAINING, {"model": model, "dataset": pairs, **POLICY}),
        "sharded": (
            JobKind.POLICY_TRAINING,
            {"model": model, "dataset": pairs, **POLICY, "training": {**TRAINING, **SHARDED}},
        ),
        "sharded_dropout": (
            JobKind.SUPERVISED_TRAINING,
            {"model": model, "dataset": completions, "training": lora | SHARDED},
        ),
        "sharded_reward": (
            JobKind.REWARD_TRAINING,
            {"model": model, "dataset": pairs, "training": {**TRAINING, **SHARDED}},
        ),
        **{
            name: (
                JobKind.POLICY_TRAINING,
                {
                    "model": model,
                    "dataset": lists if name == "list" else pairs,
                    "method": {"name": method, "params": params},
                },
            )
            for name, (method, params) in INPUTS.items()
        },
        **{
            f"{name} of adapters{' sharded' * bool(sharding)}": (
                JobKind.POLICY_TRAINING,
                {
                    "model": model,
                    "dataset": pairs,
                    "method": {"name": "tr_dpo", "params": INPUTS["follows"][1]},
                    "training": {**TRAINING, "lora": {"rank": 2, "target_modules": ["q_proj"]}, **sharding},
                },
            )
            for name, sharding in (("follows", {}), ("follows", {"sharding": "fsdp"}))
        },
        **{
            f"{name} sharded": (
                JobKind.POLICY_TRAINING,
                {
                    "model": model,
                    "dataset": pairs,
                    "method": {"name": INPUTS[name][0], "params": INPUTS[name][1]},
                    "training": {**TRAINING, "sharding": "fsdp"},
                },
            )
            for name in ("mismatched", "moves on")
        },
        "best sharded": (
            JobKind.POLICY_TRAINING,
            {
                "model": model,
                "dataset": pairs,
                # What is learnt makes them worse, so that an early step is the best.
                "eval_dataset": write(
                    [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS],
                    DatasetKind.PREFERENCE,
                ),
                "method": {"name": "dpo"},
                "training": {**TRAINING, "sharding": "fsdp", "eval_every_steps": 2, "publish": "best"},
            },
        ),
        "poisoned": (
            JobKind.POLICY_TRAINING,
            {
                "model": publish("poisoned", poisoned),
                "dataset": write(spoilt, DatasetKind.PREFERENCE),
                "method": {"name": "dpo"},
            },
        ),
    }
    return home, {
        name: (kind, {"training": TRAINING, "eval_dataset": spec["dataset"], **spec})
        for name, (kind, spec) in jobs.items()
    }


def train(site, home, *, ranks):
    """Run all jobs with a number of ranks, on a copy of the store."""
    source, jobs = site
    shutil.copytree(source / "store", home / "store")
    (home / "program.py").write_text(textwrap.dedent(PROGRAM))
    workspaces = {
        name: Workspace(
            home / name, Claim(Job(job_id(name), kind, JobState.RUNNING, spec, attempt=1), attempt=1, worker_id="test")
        )
        for name, (kind, spec) in jobs.items()
    }
    (workspaces[PAUSED].directory / "pause").touch()
    done = launch(home, workspaces.values(), ranks=ranks)
    assert done.returncode == 0, done.stderr
    refused = [path.read_text() for path in sorted(workspaces["poisoned"].directory.glob("refused-*"))]
    assert len(refused) == ranks
    assert len(set(refused)) == 1
    return Trained(home, {name: workspace.outcome() for name, workspace in workspaces.items()})


def launch(home, workspaces, *, ranks):
    """Run `program.py` on the workspaces' jobs."""
    settings = {
        "MADPO_TRAINER_STORE_URL": f"file://{home / 'store'}",
        "MADPO_TRAINER_REDIS_URL": "redis://127.0.0.1:1/0",
        "MADPO_TRAINER_WORKSPACE": str(home / "work"),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, home / "program.py", *(workspace.directory for workspace in workspaces)]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def one(site, tmp_path_factory):
    return train(site, tmp_path_factory.mktemp("one"), ranks=1)


@pytest.fixture(scope="module")
def two(site, tmp_path_factory):
    return train(site, tmp_path_factory.mktemp("two"), ranks=2)


@pytest.mark.parametrize("name", ["supervised", "dropout", "reward", "policy", *INPUTS, "follows of adapters"])
def test_two_ranks_end_with_the_weights_of_one(one, two, name):
    expected, found = one.weights(name), two.weights(name)

    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("name", "unsharded"),
    [
        ("sharded", "policy"),
        ("sharded_dropout", "dropout"),
        ("sharded_reward", "reward"),
        ("mismatched sharded", "mismatched"),
        ("moves on sharded", "moves on"),
        ("follows of adapters sharded", "follows of adapters"),
        ("best sharded", "best sharded"),
    ],
)
def test_a_model_sharded_over_two_ranks_ends_with_the_weights_of_a_whole_one(one, two, name, unsharded):
    expected, found = one.weights(unsharded), two.weights(name)

    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["sharded", "sharded_dropout", "dropout"])
def test_two_ranks_say_of_what_was_trained_what_one_says(one, two, name):
    def trained(outcomes):
        return outcomes.outcomes[name].result.summary["trained"]

    assert trained(two) == trained(one)
    assert trained(two)["moved_tensors"] > 0


def test_two_ranks_find_the_step_that_one_finds_the_best(one, two):
    best = one.outcomes["best sharded"].result.summary

    assert best["published_step"] == best["best"]["step"] == 2 < best["steps"]
    assert two.outcomes["best sharded"].result.summary["best"] == best["best"] | {
        "value": pytest.approx(best["best"]["value"], abs=1e-6)
    }


def test_recomputing_activations_changes_no_bit(one):
    assert one.outcomes["sharded"].result.model_id == one.outcomes["policy"].result.model_id
    assert one.outcomes["sharded_reward"].result.model_id == one.outcomes["reward"].result.model_id


def test_a_run_that_stops_and_goes_on_was_among_them(one, two):
    assert all((each.home / PAUSED / "a00001" / "paused.json").exists() for each in (one, two))


@pytest.mark.parametrize("name", ["supervised", "reward", "policy"])
def test_every_step_reports_the_figures_of_the_whole_batch(one, two, name):
    expected, found = (
        [json.loads(line) for line in each.artifact(name, "metrics.jsonl").splitlines()] for each in (one, two)
    )
    timings = ("time/", "rows_per_s", "tokens_per_s", "peak_memory_gib")

    assert len(found) == len(expected) == 6
    for row, other in zip(found, expected, strict=True):
        figures = {key: value for key, value in other.items() if not key.startswith(timings)}
        assert {key: row[key] for key in figures} == pytest.approx(figures, abs=2e-6, rel=1e-5)


def test_a_policy_training_reports_every_figure_operators_watch(one):
    rows = [json.loads(line) for line in one.artifact("policy", "metrics.jsonl").splitlines()]

    assert TRAINING_FIGURES.keys() <= rows[-1].keys()


def test_the_ledger_has_the_same_pairs_in_the_same_steps(one, two):
    def entries(trained):
        rows = pq.read_table(io.BytesIO(trained.artifact("policy", "ledger.parquet"))).to_pylist()
        return [(row["pair_id"], row["step"], row["epoch"], row["reward_margin"], row["tokens"]) for row in rows]

    assert len(entries(one)) == 2.1 * len(PAIRS)
    # Also of a pair that is twice in a batch that straddles two epochs.
    assert Counter(epoch for _, _, epoch, *_ in entries(one)) == {0: 20, 1: 20, 2: 2}
    assert entries(two) == entries(one)


def test_all_ranks_go_by_one_calibration(one, two):
    margins = [abs(pair.reward_margin) for pair in PAIRS]

    assert two.artifact("policy", "calibration.json") == one.artifact("policy", "calibration.json")
    report = json.loads(two.artifact("policy", "calibration.json"))
    assert report["params"]["tau"] == pytest.approx(float(np.quantile(margins, 0.6)) / 1.5)
    assert two.outcomes["policy"].result.summary["method"]["params"] == report["params"]


@pytest.mark.parametrize("name", ["supervised", "reward", "policy"])
def test_held_out_figures_of_the_same_weights_are_equal_bit_for_bit(one, two, name):
    before = [each.outcomes[name].result.summary["eval_before"] for each in (one, two)]

    assert before[0] == before[1]
    assert before[0]


def test_reference_log_probs_are_equal_bit_for_bit(one, two):
    assert one.references()
    assert two.references() == one.references()


@pytest.mark.promise("T6")
def test_a_loss_that_is_no_number_on_one_rank_is_refused_by_all_and_the_row_is_named(two):
    outcome = two.outcomes["poisoned"]
    spoilt = PreferencePair(PAIRS[POISONED - 1].prompt, "bad .", PAIRS[POISONED - 1].rejected)

    assert outcome.kind == "failed"
    assert "non-finite loss" in outcome.reason
    assert f"offending first: {spoilt.pair_id}" in outcome.reason


def test_the_record_says_how_the_model_was_run(one, two):
    for each in (one, two):
        execution = each.outcomes["policy"].result.summary["execution"]
        assert execution["layout"] == "packed"
        assert execution["micro_batch_tokens"] == 40
        assert execution["memory_estimate"]["activations_mib"] > 0
        assert execution["activation_checkpointing"] is False
        assert execution["activation_checkpointing_reason"] == "a step fits without"
        assert execution["deterministic"] is True
        assert execution["tokens_per_s"] > 0
        assert execution["peak_memory_gib"] > 0
        assert each.outcomes["reward"].result.summary["execution"]["layout"] == "packed"
        assert each.outcomes["sharded"].result.summary["execution"]["layout"] == "packed"
        dropout = each.outcomes["dropout"].result.summary["execution"]
        assert (dropout["layout"], dropout["layout_reason"][:13]) == ("unshared", "dropout is on")


SHORT_OF_MEMORY = """
    from madpo_trainer.loop import TrainingLoop

    accumulate = TrainingLoop._accumulate_all
    def short(self, work, rows):
        if self._ranks.rank == 1 and self.state.step == 3 and self._micro_batches.budget_tokens > {enough}:
            torch.empty(1 << 60)
        accumulate(self, work, rows)

    TrainingLoop._accumulate_all = short
"""


def run_short_of_memory(home, site, *, attempt, enough, ranks=2):
    """One attempt at the sharded policy job, with memory for so many tokens on the second of its ranks."""
    kind, spec = site[1]["sharded"]
    job = Job(job_id("short"), kind, JobState.RUNNING, spec, attempt=attempt)
    workspace = Workspace(home / "short", Claim(job, attempt=attempt, worker_id="test"))
    preparation = "import torch\n" + textwrap.dedent(SHORT_OF_MEMORY.format(enough=enough))
    (home / "program.py").write_text(preparation + textwrap.dedent(PROGRAM))
    return launch(home, [workspace], ranks=ranks), workspace


def test_sharded_ranks_short_of_memory_go_on_in_smaller_pieces_in_the_next_attempt(site, two, tmp_path):
    shutil.copytree(site[0] / "store", tmp_path / "store")

    first, begun = run_short_of_memory(tmp_path, site, attempt=1, enough=20)
    second, ended = run_short_of_memory(tmp_path, site, attempt=2, enough=20)

    assert first.returncode != 0
    assert begun.outcome() is None
    assert second.returncode == 0, second.stderr
    execution = ended.outcome().result.summary["execution"]
    assert execution["memory_shortage"] == {"step": 4, "before": 40, "after": 20}
    assert execution["micro_batch_tokens"] == 20
    trained = Trained(tmp_path, {"sharded": ended.outcome()}).weights("sharded")
    for key, tensor in two.weights("sharded").items():
        torch.testing.assert_close(trained[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_a_shortage_in_smaller_pieces_ends_the_job_and_says_what_to_do(site, tmp_path):
    shutil.copytree(site[0] / "store", tmp_path / "store")
    note_shortage(LocalStore(tmp_path / "store"), job_id("short"), {"step": 4, "before": 20, "after": 0})

    done, ended = run_short_of_memory(tmp_path, site, attempt=3, enough=20, ranks=1)

    assert done.returncode == 0, done.stderr
    assert ended.outcome().kind == "failed"
    assert "step 4 with a single row in a micro-batch (lower training.micro_batch" in ended.outcome().reason
