"""Ways to train with less memory, of a model that is split over two ranks: as on one rank, and exactly resumed."""

import shutil
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from madpo.ports import Claim
from madpo.storage.checkpoints import CheckpointStore, list_checkpoints
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind, Job, JobKind, JobState
from madpo.worker.workspace import Workspace
from tests.integration.trainer.test_distributed_training import PATIENCE_S, POLICY, PROGRAM, TRAINING, launch
from tests.integration.trainer.training_site import PAIRS, job_id
from tests.model_directories import save_directory

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.timeout(2 * PATIENCE_S + 60)

SHARDED = {**TRAINING, "sharding": "fsdp", "checkpoint_every_steps": 3}
OPTIMIZER = TRAINING["optimizer"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "offload": {"optimizer": {**OPTIMIZER, "offload": True}},
    "8bit": {"optimizer": {**OPTIMIZER, "name": "adamw_8bit"}},
    "nf4": {"lora": {"rank": 2, "target_modules": ["q_proj", "down_proj"], "quantize_base": "nf4"}},
    "nf4 bf16": {"lora": {"rank": 2, "quantize_base": "nf4"}, "precision": "bf16"},
    "lora bf16": {"lora": {"rank": 2}, "precision": "bf16"},
}
ATOL = {"8bit": 5e-5}
"""A moment near the middle of two numbers of eight bits goes to the one or the other by the last bit of a sum."""


@dataclass(frozen=True)
class Site:
    """A store, and one job for each form; attempts at all of them are one process group."""

    home: Any
    store: LocalStore
    models: ModelStore
    inputs: dict[str, Any]

    def attempt(self, run, forms, number, *, ranks, pause=False):
        spaces = {}
        for form in forms:
            name = f"{run} {form}"
            spec = {**self.inputs, **POLICY, "training": SHARDED | FORMS[form]}
            job = Job(job_id(name), JobKind.POLICY_TRAINING, JobState.RUNNING, spec, attempt=number)
            spaces[form] = Workspace(self.home / name, Claim(job, attempt=number, worker_id="test"))
            if pause:
                (spaces[form].directory / "pause").touch()
        program = textwrap.dedent(PROGRAM)
        if pause:  # the next attempt is another process group
            program = program.replace("if ranks.lead(lambda: go_on(workspace)):", "if False:")
        (self.home / "program.py").write_text(program)
        done = launch(self.home, spaces.values(), ranks=ranks)
        assert done.returncode == 0, done.stderr
        return {form: space.outcome() for form, space in spaces.items()}

    def weights(self, outcome):
        assert outcome.kind == "succeeded", outcome.reason
        return load_file(next(self.models.fetch(outcome.result.model_id).glob("*.safetensors")))

    def go_on(self, run, forms, *, ranks):
        """From the checkpoint of the paused run, as another job."""
        for form in forms:
            jobs = self.home / "store" / "jobs"
            shutil.copytree(jobs / job_id(f"paused {form}"), jobs / job_id(f"{run} {form}"))
        return self.attempt(run, forms, 2, ranks=ranks)


@pytest.fixture(scope="module")
def site(tmp_path_factory, make_toy_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    home = tmp_path_factory.mktemp("forms")
    tokenizer = make_toy_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_directory(LlamaForCausalLM(config), tokenizer, home / "model")
    store = LocalStore(home / "store")
    models = ModelStore(store, home / "cache")
    model_id = models.publish(home / "model", display_name="model", kind="causal_lm")[0].model_id
    data, _ = DatasetStore(store).write(
        PAIRS, kind=DatasetKind.PREFERENCE, display_name="data", scratch=home / "scratch"
    )
    return Site(home, store, models, {"model": {"model_id": model_id}, "dataset": {"dataset_id": data.dataset_id}})


@pytest.fixture(scope="module")
def two(site):
    return site.attempt("two", FORMS, 1, ranks=2)


@pytest.fixture(scope="module")
def one(site):
    return site.attempt("one", FORMS, 1, ranks=1)


@pytest.fixture(scope="module")
def paused(site):
    return site.attempt("paused", FORMS, 1, ranks=2, pause=True)


@pytest.fixture(scope="module")
def gone_on_by_two(site, paused):
    return site.go_on("by two", FORMS, ranks=2)


@pytest.fixture(scope="module")
def gone_on_by_one(site, paused):
    return site.go_on("by one", FORMS, ranks=1)


def assert_close(found, expected, form):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(
            found[key], tensor, rtol=0, atol=ATOL.get(form, 1e-6), msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("form", FORMS)
def test_two_ranks_end_with_the_weights_of_one(site, one, two, form):
    assert_close(site.weights(two[form]), site.weights(one[form]), form)


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_stops_and_goes_on_ends_with_the_same_bytes(two, gone_on_by_two, form):
    assert gone_on_by_two[form].result.model_id == two[form].result.model_id


@pytest.mark.parametrize("form", FORMS)
def test_another_number_of_ranks_goes_on(site, two, gone_on_by_one, form):
    assert_close(site.weights(gone_on_by_one[form]), site.weights(two[form]), form)


def test_moments_on_the_host_give_the_same_bytes(two):
    assert two["offload"].result.model_id == two["plain"].result.model_id


def test_matrices_are_remembered_in_eight_bits_by_row(site, paused, tmp_path):
    (newest, *_) = list_checkpoints(site.store, job_id("paused 8bit"))
    CheckpointStore(site.store, job_id("paused 8bit"), attempt=9).fetch(newest, tmp_path)

    with safe_open(tmp_path / "optimizer.safetensors", framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    name = "model.layers.0.self_attn.q_proj.weight"
    assert state[f"{name}/state1"].dtype == torch.uint8
    assert state[f"{name}/absmax1"].shape == (256, 1)
    assert state[f"{name}/step"] == 3
    assert state["model.embed_tokens.weight/state1"].dtype == torch.float32
    assert state["model.layers.0.input_layernorm.weight/state1"].dtype == torch.float32
