"""What a training is said to take of memory, against what one on this CPU took."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from madpo.jobs.training import LoraParameters, TrainingParameters
from madpo.losses.registry import parse_params
from madpo_trainer import memory_plan, plan
from madpo_trainer.live_memory import LiveMemory
from madpo_trainer.memory_plan import plan_memory
from madpo_trainer.shapes import SHAPES
from tests.memory_table import PAGE, memory_table, page_with
from tests.unit.trainer.measured import NAMES, SMALL, WAYS, most_taken


@pytest.mark.parametrize(("lora", "recompute", "precision"), WAYS, ids=NAMES)
def test_a_step_takes_what_was_planned(lora, recompute, precision):
    parameters = TrainingParameters(
        lora=lora,
        activation_checkpointing=recompute,
        precision=precision,
        max_tokens=256,
        micro_batch_tokens=768,
    )

    planned = plan_memory(SMALL, parameters)

    assert planned.activations + planned.head == pytest.approx(
        most_taken(parameters, list(memory_plan._groups(parameters))), rel=0.1
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_on_a_base_in_four_bits_takes_what_was_planned(recompute, precision):
    pytest.importorskip("bitsandbytes")
    lora = LoraParameters(quantize_base="nf4")
    parameters = TrainingParameters(
        lora=lora, activation_checkpointing=recompute, precision=precision, max_tokens=256, micro_batch_tokens=768
    )

    planned = plan_memory(SMALL, parameters)

    taken = most_taken(parameters, list(memory_plan._groups(parameters)))
    assert planned.activations + planned.head == pytest.approx(taken, rel=0.1)


def test_a_base_in_four_bits_takes_four_and_a_half_and_is_whole_while_it_is_loaded():
    whole, small = (
        plan_memory(SMALL, TrainingParameters(lora=LoraParameters(**fields), micro_batch_tokens=100, max_tokens=50))
        for fields in ({}, {"quantize_base": "nf4"})
    )
    model = AutoModelForCausalLM.from_config(SMALL)
    linear = sum(each.numel() for each in model.model.layers.parameters() if each.dim() == 2)

    assert whole.weights - small.weights == linear * (16 - 4.5) / 8  # of a base in bf16
    assert small.host_load == whole.host_load
    assert (small.gradients, small.optimizer, small.disk_save) == (whole.gradients, whole.optimizer, whole.disk_save)


@pytest.mark.parametrize("recompute", [False, True])
def test_many_like_blocks_are_told_by_few(recompute, monkeypatch):
    parameters = TrainingParameters(
        activation_checkpointing=recompute, precision="bf16", micro_batch_tokens=300, max_tokens=100
    )

    told = plan_memory(SMALL, parameters)
    monkeypatch.setattr(memory_plan, "_DEPTHS", (SMALL.num_hidden_layers,))

    assert plan_memory(SMALL, parameters).total == pytest.approx(told.total, rel=0.01)


def test_what_is_split_over_cards_is_counted_by_its_part():
    alone = plan_memory(SMALL, TrainingParameters(micro_batch_tokens=100, max_tokens=50))
    four = plan_memory(SMALL, TrainingParameters(micro_batch_tokens=100, max_tokens=50, sharding="fsdp"), gpus=4)
    model = AutoModelForCausalLM.from_config(SMALL)
    blocks, head = (sum(each.numel() for each in of.parameters()) for of in (model.model.layers, model.lm_head))
    split = 4 * (blocks + 2 * head)

    assert alone.gathered == 0
    assert alone.weights - four.weights == pytest.approx(split * 3 / 4, rel=0.001)
    assert (four.gradients, four.optimizer) == (four.weights, 2 * four.weights)
    # Two blocks and a gradient in bf16, and the gradient in fp32; the head and its gradient in bf16.
    assert four.gathered == blocks / SMALL.num_hidden_layers * (2 + 2 + 2 + 4) + head * (2 + 2)
    # Each rank reads its part.
    assert four.host_load == alone.host_load == alone.weights
    # However many write a checkpoint, its files are on the disk of their host.
    assert four.disk_save == alone.disk_save == 3 * alone.weights


@pytest.mark.parametrize("gpus", [1, 4])
def test_other_forms_of_adamw_remember_less_on_the_card(gpus):
    config = copy.deepcopy(SMALL)
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 768, 64  # rows of whole blocks of 256
    plain, in_8_bits, offloaded = (
        plan_memory(
            config,
            TrainingParameters(micro_batch_tokens=100, max_tokens=50, optimizer=optimizer, sharding="fsdp"),
            gpus=gpus,
        )
        for optimizer in ({}, {"name": "adamw_8bit"}, {"offload": True})
    )
    weights = plain.weights // 4
    embeddings = SMALL.vocab_size * config.hidden_size // gpus

    assert plain.optimizer == 8 * weights
    assert in_8_bits.optimizer == pytest.approx(8 * embeddings + 2.03 * (weights - embeddings), rel=0.01)
    assert offloaded.optimizer == 8 * embeddings  # the largest, in one piece
    assert offloaded.host_save == plain.host_save == plain.disk_save == pytest.approx(12 * weights * gpus, rel=0.001)


def test_a_reference_that_moves_is_a_second_model():
    parameters = TrainingParameters(micro_batch_tokens=100, max_tokens=50, lora=LoraParameters())
    method = parse_params("tr_dpo", {})
    assert method.reference_update() is not None

    fixed, moving = (plan_memory(SMALL, parameters, method=each) for each in (None, method))

    base = sum(each.nbytes for each in AutoModelForCausalLM.from_config(SMALL).parameters())
    assert moving.weights - fixed.weights == moving.disk_save - fixed.disk_save == base


def test_named_shapes_have_the_weights_that_they_are_named_after():
    named = {"0.5b": 0.494e9, "1b": 1.24e9, "7b": 7.62e9, "8b": 8.03e9, "14b": 14.77e9, "32b": 32.76e9}
    named |= {"70b": 70.55e9, "72b": 72.71e9}
    for name, config in SHAPES.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        found = sum(each.numel() for each in model.parameters())
        assert found == pytest.approx(named[name.partition("-")[2]], rel=0.005), name


def test_memory_that_was_given_back_is_not_counted():
    there = torch.zeros(10)
    with LiveMemory([there]) as live:
        one = there + 1
        view = one[:5]
        del one
        assert live.now == 40  # the view holds it
        del view
        two = torch.cat([there, there])
        there.add_(1)
    assert (live.now, live.most) == (two.nbytes, 80)


def test_the_command_says_what_fits(capsys, monkeypatch, tmp_path):
    SMALL.save_pretrained(tmp_path)
    asked = ["plan", "--config", str(tmp_path / "config.json"), "--lora", "8", "--activation-checkpointing", "off"]
    monkeypatch.setattr("sys.argv", [*asked, "--json"])
    assert plan.main() == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["training"] == "LoRA, rank 8"
    assert row["fits_gib"] == [24, 48, 80, 141]
    parts = ("weights", "gradients", "optimizer", "gathered", "activations", "head")
    assert row["total_gib"] == pytest.approx(sum(row[f"{part}_gib"] for part in parts), abs=0.04)

    monkeypatch.setattr("sys.argv", asked)
    assert plan.main() == 0
    printed = capsys.readouterr().out
    assert "LoRA, rank 8" in printed
    assert "24 GB" in printed


def test_the_command_refuses_in_a_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for asked, said in (
        (["--config", str(tmp_path / "config.json")], "is no config.json of a model"),
        (["--model-shape", "llama-8b", "--method", "nope"], "there is no method 'nope'"),
    ):
        monkeypatch.setattr("sys.argv", ["plan", *asked])
        assert plan.main() == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_has_the_table_of_today():
    assert PAGE.read_text() == page_with(memory_table()), "run `make docs`"
