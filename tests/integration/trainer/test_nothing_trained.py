"""A job that moved no weight fails, and says why; one that moved some says which."""

import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from madpo.errors import FailedPreconditionError, NonFiniteError
from madpo.models.dtypes import WeightDtypes
from madpo.storage.datasets import DatasetStore
from madpo.storage.models import ModelStore
from madpo.types import DatasetKind
from madpo_trainer.optimizer import trainable_parameters
from madpo_trainer.trained_weights import lost_adapters, require_movement
from tests.integration.trainer.training_site import PAIRS


def train(site, name, *, pairs=None, model=None, optimizer=None, pause_at=None, **training):
    dataset = site.pairs
    if pairs is not None:
        stored, _ = DatasetStore(site.store).write(
            pairs, kind=DatasetKind.PREFERENCE, display_name="", scratch=site.home / "scratch"
        )
        dataset = stored.dataset_id
    parameters = {
        "max_steps": 2,
        "global_batch_size": 8,
        "max_tokens": 32,
        "checkpoint_every_steps": 1,
        "optimizer": {"learning_rate": 1e-3, **(optimizer or {})},
        **training,
    }
    spec = {"dataset": dataset, "method": {"name": "dpo", "params": {}}, "training": parameters}
    return site.train(name, spec | ({"model": model} if model else {}), pause_at=pause_at)


def test_one_step_trains_and_the_result_says_how_much(site):
    outcome = train(site, "one", max_steps=1)

    assert outcome.kind == "succeeded"
    trained = outcome.result.summary["trained"]
    assert trained["parameters"] == trained["of_parameters"] > 0
    assert trained["share"] == 1
    assert 0 < trained["moved_tensors"] <= trained["of_tensors"]
    assert outcome.result.summary["final"]["learning_rate"] == 1e-3


def test_of_an_adapter_the_result_names_the_layers(site):
    trained = train(site, "lora", max_steps=1, lora={"rank": 2, "target_modules": ["q_proj"]}).result.summary["trained"]

    assert trained["adapted_layers"] == {"q_proj": 2}
    assert trained["of_tensors"] == 4
    # One factor begins at 0, so the other has no gradient in the first step; decay moves it.
    assert 2 <= trained["moved_tensors"] <= 4
    assert 0 < trained["share"] == trained["parameters"] / trained["of_parameters"] < 0.1


def test_a_run_that_goes_on_compares_with_the_weights_before_its_first_step(site):
    straight, paused = train(site, "straight", max_steps=3), train(site, "paused", max_steps=3, pause_at=2)

    assert paused.result.summary["trained"] == straight.result.summary["trained"]


def test_learning_rates_that_are_lost_in_rounding_are_named(site):
    with pytest.raises(FailedPreconditionError, match=r"nothing was trained: no update .* rates up to 1e-30 .*\(raise"):
        train(site, "slow", optimizer={"learning_rate": 1e-30, "weight_decay": 0.0})


def test_an_adapter_whose_update_is_lost_beside_its_weight_has_trained_nothing(site):
    # The factor that begins at 0 moves by as little as it is told to.
    with pytest.raises(FailedPreconditionError, match=r"nothing was trained: no update .* rates up to 1e-12 .*\(raise"):
        train(site, "lost", lora={"rank": 2}, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})


def test_weights_that_are_no_numbers_are_told_of_with_the_rows(site):
    directory = site.home / "broken-model"
    shutil.copytree(site.home / "model", directory)
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][0, 0] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    models = ModelStore(site.store, site.home / "cache")
    model, _ = models.publish(directory, display_name="broken", kind="causal_lm")

    says = (
        rf"in step 1; .*weights of the model that the job starts from are no finite numbers: {name} \(1 tensor in all"
    )
    with pytest.raises(NonFiniteError, match=says):
        train(site, "broken", model={"model_id": model.model_id})


@pytest.mark.parametrize(("share", "is_lost"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("layer", ["linear", "embedding"])
def test_an_adapter_is_lost_where_its_product_is_less_than_half_a_rounding_of_its_weight(layer, share, is_lost):
    torch.manual_seed(0)
    body = nn.ModuleDict({"linear": nn.Linear(6, 5), "embedding": nn.Embedding(7, 4)})
    model = get_peft_model(body, LoraConfig(r=2, lora_alpha=6, target_modules=[layer]))
    adapted = model.get_submodule(f"base_model.model.{layer}")
    down, up = (parameter for _, parameter in trainable_parameters(adapted))
    with torch.no_grad():
        down.normal_()
        up.normal_()
        up *= share * 2.0**-24 * adapted.get_base_layer().weight.norm() / (3 * (up @ down).norm())

    lost = lost_adapters(model, dtypes=WeightDtypes(torch.float32))

    assert lost == ({name for name, _ in trainable_parameters(model)} if is_lost else set())


def test_rows_that_all_have_the_weight_0_are_named_though_decay_moves_the_weights(site):
    weightless = [replace(pair, weight=0.0) for pair in PAIRS]

    with pytest.raises(
        FailedPreconditionError, match=r"every gradient .* was 0: the dataset gives every row .* weight 0"
    ):
        train(site, "weightless", pairs=weightless, optimizer={"weight_decay": 0.5, "learning_rate": 0.1})


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        ({"weight/mean": 0.0}, "the method gave every pair the weight 0"),
        ({"weight/mean": 0.5, "pairs/kept_ratio": 0.0}, "the method kept no pair"),
        ({"weight/mean": 0.5}, "the loss does not depend on what is trained"),
    ],
)
def test_why_nothing_had_a_gradient_is_said(figures, why):
    largest = {"grad_norm": 0.0, "learning_rate": 1e-3, **figures}

    with pytest.raises(FailedPreconditionError, match=why):
        require_movement({"a": 1}, {"a": 2}, largest=largest)


def test_what_an_older_version_began_is_let_pass():
    assert require_movement({}, {"a": 2}, largest={}) == 0
