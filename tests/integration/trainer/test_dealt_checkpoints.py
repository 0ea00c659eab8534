"""Checkpoints in several files: each rank writes and stores its own, and any number of ranks goes on from them."""

import shutil
import textwrap

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from madpo.ports import Claim
from madpo.storage.bundle import read_manifest
from madpo.storage.checkpoints import CheckpointStore, list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.keys import checkpoint as checkpoint_key
from madpo.storage.keys import checkpoint_parts
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Job, JobKind, JobState
from madpo.worker.workspace import Workspace
from tests.integration.trainer.test_distributed_training import POLICY, PROGRAM, TRAINING, launch
from tests.integration.trainer.training_site import PAIRS, job_id
from tests.model_directories import save_directory

PART_BYTES = 6_000
"""Of a model of 5,000 weights in float32: four files of it, and of the optimizer's state twice as many."""
SMALL_PARTS = f"""
    from madpo_trainer import written_parts
    from madpo.storage.checkpoints import CheckpointStore

    written_parts.PART_BYTES = {PART_BYTES}
    upload = CheckpointStore.upload

    def told(self, step, directory):
        files = upload(self, step, directory)
        with open(directory.parent / "uploaded", "a") as log:
            log.writelines(f"{{file.path}}\\n" for file in files)
        return files

    CheckpointStore.upload = told
"""
UNTIL_TRAINING_WENT_ON = """
    import time
    from madpo_trainer.loop import TrainingLoop

    make_step = TrainingLoop._step

    def waiting(self, step, directory):
        deadline = time.monotonic() + 120
        while not (directory.parent / "went-on").exists():
            assert time.monotonic() < deadline, "training waits for the upload"
            time.sleep(0.01)
        return told(self, step, directory)

    def going_on(self):
        if self.state.step == 5:
            (self._run.directory / "went-on").touch()
        return make_step(self)

    CheckpointStore.upload, TrainingLoop._step = waiting, going_on
"""
"""The second rank stores nothing of the checkpoint of step 3 before two more steps are made."""
REFUSED = """
    from madpo.errors import FailedPreconditionError

    def refuse(self, step, directory):
        raise FailedPreconditionError("the bucket is locked")

    CheckpointStore.upload = refuse
"""
FAILING = """
    import time
    from madpo.errors import FailedPreconditionError
    from madpo_trainer.loop import TrainingLoop

    make_step = TrainingLoop._step

    def waiting(self, step, directory):
        deadline = time.monotonic() + 120
        while not (directory.parent / "failing").exists():
            assert time.monotonic() < deadline, "no rank fails"
            time.sleep(0.01)
        return told(self, step, directory)

    def failing(self):
        if self.state.step == 4 and self._ranks.rank in RANKS:
            (self._run.directory / "failing").touch()
            raise ERROR
        return make_step(self)

    CheckpointStore.upload, TrainingLoop._step = waiting, failing
"""
"""The second rank stores nothing of the checkpoint of step 3 before the next step but one fails."""


class Site:
    """A store with a job that is trained in attempts by any number of ranks."""

    def __init__(self, home, model, tokenizer):
        self.home, self.store = home, LocalStore(home / "store")
        save_directory(model, tokenizer, home / "model")
        self.models = ModelStore(self.store, home / "cache")
        model_id = self.models.publish(home / "model", display_name="model", kind="causal_lm")[0].model_id
        data, _ = DatasetStore(self.store).write(
            PAIRS, kind=DatasetKind.PREFERENCE, display_name="data", scratch=home / "scratch"
        )
        training = {**TRAINING, "sharding": "fsdp", "checkpoint_every_steps": 3, "keep_checkpoints": 5}
        self.spec = {
            "model": {"model_id": model_id},
            "dataset": {"dataset_id": data.dataset_id},
            "training": training,
            **POLICY,
        }

    def attempt(self, name, attempt, *, ranks, pause=False, parts=True, also="", returns=0):
        """Run an attempt at the job; its outcome."""
        job = Job(job_id(name), JobKind.POLICY_TRAINING, JobState.RUNNING, self.spec, attempt=attempt)
        workspace = Workspace(self.home / name, Claim(job, attempt=attempt, worker_id="test"))
        if pause:
            (workspace.directory / "pause").touch()
        program = textwrap.dedent(PROGRAM)
        if pause:  # the next attempt is another process group
            program = program.replace("if ranks.lead(lambda: go_on(workspace)):", "if False:")
        (self.home / "program.py").write_text(textwrap.dedent(SMALL_PARTS) * parts + textwrap.dedent(also) + program)
        done = launch(self.home, [workspace], ranks=ranks)
        assert done.returncode == returns, done.stderr
        return workspace

    def weights(self, workspace):
        directory = self.models.fetch(workspace.outcome().result.model_id)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_toy_lm, make_toy_tokenizer):
    model = make_toy_lm()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return Site(tmp_path_factory.mktemp("dealt"), model, make_toy_tokenizer())


@pytest.fixture(scope="module")
def straight(site):
    """By two ranks, in one go."""
    return site.attempt("straight", 1, ranks=2)


@pytest.fixture(scope="module")
def paused(site):
    """By two ranks, up to a checkpoint."""
    return site.attempt("paused", 1, ranks=2, pause=True)


def files_of(site, name):
    (newest, *_) = list_checkpoints(site.store, job_id(name))
    manifest = read_manifest(site.store, checkpoint_key(job_id(name), step=newest.step, attempt=newest.attempt))
    return newest, {file.path: file.size_bytes for file in manifest.files}


def test_ranks_take_turns_with_the_files(site, paused):
    _, files = files_of(site, "paused")
    weights = sorted(path for path in files if path.startswith("model/model-"))
    moments = sorted(path for path in files if path.startswith("optimizer-"))

    assert weights == [
        f"model/model-{number:05d}-of-{len(weights):05d}.safetensors" for number in range(1, len(weights) + 1)
    ]
    assert len(weights) >= 3
    assert len(moments) >= 2 * len(weights) - 1
    assert all(
        files[path] < PART_BYTES + 4_000 for path in (*weights, *moments)
    )  # headers are long beside so few weights
    uploaded = set((paused.directory / "uploaded").read_text().split())
    assert uploaded == {*weights[1::2], *moments[1::2]}


def test_a_checkpoint_in_files_is_a_model_directory(site, paused, tmp_path):
    newest, _ = files_of(site, "paused")
    CheckpointStore(site.store, job_id("paused"), attempt=9).fetch(newest, tmp_path)

    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, output_loading_info=True
    )

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    stored = {}
    for path in tmp_path.glob("optimizer-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert {key.rpartition("/")[0] for key in stored} == shapes.keys()
    assert all(stored[f"{name}/exp_avg"] == shape for name, shape in shapes.items())


def test_a_run_that_goes_on_from_files_ends_with_the_same_bytes(site, straight, paused):
    shutil.copytree(site.home / "store" / "jobs" / job_id("paused"), site.home / "store" / "jobs" / job_id("two"))

    gone_on = site.attempt("two", 2, ranks=2)

    assert gone_on.outcome().result.model_id == straight.outcome().result.model_id


@pytest.mark.parametrize("ranks", [1, 3])
def test_another_number_of_ranks_goes_on_from_them(site, straight, paused, ranks):
    name = f"by-{ranks}"
    shutil.copytree(site.home / "store" / "jobs" / job_id("paused"), site.home / "store" / "jobs" / job_id(name))

    gone_on = site.attempt(name, 2, ranks=ranks)

    expected, found = site.weights(straight), site.weights(gone_on)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_the_number_of_files_changes_no_weight(site, straight):
    whole = site.attempt("whole", 1, ranks=2, parts=False)

    expected, found = site.weights(straight), site.weights(whole)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    directory = site.models.fetch(straight.outcome().result.model_id)
    assert len(list(directory.glob("model-*.safetensors"))) >= 3
    assert (directory / "model.safetensors.index.json").is_file()


def test_ranks_train_while_one_of_them_stores_its_files(site, straight):
    slow = site.attempt("slow", 1, ranks=2, also=UNTIL_TRAINING_WENT_ON)

    assert slow.outcome().result.model_id == straight.outcome().result.model_id
    assert [checkpoint.step for checkpoint in list_checkpoints(site.store, job_id("slow"))] == [6, 3]


def test_files_that_one_rank_cannot_store_end_the_job_on_all_with_the_reason(site):
    refused = site.attempt("refused", 1, ranks=2, also=REFUSED)

    assert refused.outcome().kind == "failed"
    assert refused.outcome().reason == "the bucket is locked"
    assert [(refused.directory / f"refused-{rank}").read_text() for rank in (0, 1)] == ["the bucket is locked"] * 2
    assert list_checkpoints(site.store, job_id("refused")) == []


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_step_that_fails_does_not_cost_the_checkpoint_of_which_ranks_store_parts(site, ranks):
    """On one rank, whose end the other does not hear of; or on all, with a reason."""
    name = f"fails-on-{ranks}"
    error = "RuntimeError('boom')" if len(ranks) == 1 else "FailedPreconditionError('no more')"
    failing = FAILING.replace("RANKS", str(ranks)).replace("ERROR", error)

    failed = site.attempt(name, 1, ranks=2, also=failing, returns=int(len(ranks) == 1))

    assert [checkpoint.step for checkpoint in list_checkpoints(site.store, job_id(name))] == [3]
    assert not list(site.store.list(f"{checkpoint_parts(job_id(name))}/"))
    if len(ranks) > 1:
        assert failed.outcome().reason == "no more"


def test_ranks_whose_files_never_come_are_not_waited_for_without_end(site):
    """The second rank fails and cannot store its files either."""
    failing = FAILING.replace("RANKS", "(1,)").replace("ERROR", "RuntimeError('boom')")
    failing = failing.replace("return told(self, step, directory)", "raise OSError('the disk is gone')")

    site.attempt("gone", 1, ranks=2, also=failing, returns=1)

    assert list_checkpoints(site.store, job_id("gone")) == []
