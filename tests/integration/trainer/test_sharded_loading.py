"""Loading of sharded models: each rank reads its part, and has what it would have had of the whole."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tests.model_directories import save_directory

SHAPE = {
    "vocab_size": 33,  # of which two ranks have unequal parts
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LARGE = SHAPE | {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10}

# Each rank writes down what it found, as `found-{rank}.json`.
PROGRAM = """
    import json, resource, sys
    from functools import partial
    from pathlib import Path

    import torch
    from torch.distributed.tensor import DTensor

    from madpo.jobs.training import LoraParameters, TrainingParameters
    from madpo.models import parts
    from madpo.models.dtypes import WeightDtypes
    from madpo.models.logps import ResponseGroup
    from madpo_trainer.initial_model import InitialModel
    from madpo_trainer.model_placing import ModelPlacing
    from madpo_trainer.ranks import OneRank, open_ranks, run_rank
    from madpo_trainer.settings import RankEnvironment
    from madpo_trainer.sharding import whole
    from madpo_trainer.trained_weights import saved_state

    HOME = Path(sys.argv[1])

    def initial(name):
        return InitialModel(HOME / name, name, "causal_lm", WeightDtypes(), name)

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def load(name, ranks, kind="causal_lm", lora=None):
        torch.manual_seed(0)
        parameters = TrainingParameters(sharding="fsdp", precision="fp32", lora=lora)
        return ModelPlacing(parameters, ranks, kind=kind).runner(initial(name), None)

    def gradients(runner, kind):
        groups = [ResponseGroup((1, 5, 6), ((7, 8, 2), (9, 2))), ResponseGroup((1, 4), ((3, 2),))]
        values = runner.scores(groups) if kind == "reward" else runner.logps(groups).logps
        values.square().sum().backward()
        named = {name: each for name, each in runner.model.named_parameters() if each.grad is not None}
        runs = {name: 2 if isinstance(each, DTensor) else 1 for name, each in named.items()}  # summed over ranks
        return {name: whole(each.grad) / runs[name] for name, each in named.items()}

    def compare(ranks, name, kind="causal_lm", lora=None):
        runners = [load(name, each, kind, lora) for each in (OneRank(), ranks)]
        alone, model = (runner.model for runner in runners)
        same = [name for name, value in model.named_buffers() if torch.equal(value, alone.get_buffer(name))]
        found = {name: whole(value.detach()) for name, value in model.named_parameters()}
        ids = torch.arange(1, 9)[None]
        with torch.no_grad():
            outputs = [each(input_ids=ids).logits for each in (alone, model)]
        expected, summed = (gradients(runner, kind) for runner in runners)
        state = saved_state(model, keep=True)
        pairs = [(state[key], value) for key, value in saved_state(alone, keep=True).items()]
        return {
            "buffers": len(same) == len(list(alone.named_buffers())),
            "parameters": all(torch.equal(found[name], value) for name, value in alone.named_parameters()),
            "names": sorted(found) == sorted(name for name, _ in alone.named_parameters()),
            "trained": [name for name, value in model.named_parameters() if value.requires_grad]
            == [name for name, value in alone.named_parameters() if value.requires_grad],
            "logits": float((outputs[0] - outputs[1]).abs().max()),
            "gradients": sorted(summed) == sorted(expected)
            and all(torch.allclose(summed[key], value, rtol=1e-5, atol=1e-6) for key, value in expected.items()),
            "layout": runners[1].layout.name,
            "saved": all(torch.equal(*pair) for pair in pairs),
            "stored": len({value.data_ptr() for value, _ in pairs}) == len({value.data_ptr() for _, value in pairs}),
            "whole": sum(not isinstance(value, DTensor) for value in model.parameters()),
        }

    def program():
        with open_ranks(RankEnvironment(), timeout_s=60) as ranks:
            read, found = [], {}
            load_parts = parts.load_parts

            def watched(*args, **options):
                loaded = load_parts(*args, **options)
                read.append(loaded is not None)
                return loaded

            import madpo.models.load

            madpo.models.load.load_parts = watched
            for name in ("plain", "tied", "experts", "old"):
                found[name] = compare(ranks, name)
            found["adapters"] = compare(ranks, "tied", lora=LoraParameters(rank=2))
            found["reward"] = compare(ranks, "plain", kind="reward")
            found["reward adapters"] = compare(ranks, "plain", kind="reward", lora=LoraParameters(rank=2))
            found["read in parts"] = read
            before = peak()
            model = load("large", ranks).model
            found["bytes"] = 4 * sum(value.numel() for value in model.parameters())
            found["peak"] = peak() - before
            (HOME / f"found-{ranks.rank}.json").write_text(json.dumps(found))
        return 0

    run_rank(program)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, make_toy_tokenizer: Callable[..., Any]) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    home: Path = tmp_path_factory.mktemp("loading")
    torch.manual_seed(0)
    models = {
        "plain": LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "tied": LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).to(torch.bfloat16),
        "experts": MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=3)),
        "old": GPT2LMHeadModel(GPT2Config(vocab_size=33, n_embd=16, n_layer=2, n_head=2, eos_token_id=2)),
        "large": LlamaForCausalLM(LlamaConfig(**LARGE)).to(torch.bfloat16),
    }
    for name, model in models.items():
        save_directory(model, make_toy_tokenizer(), home / name)
    del models
    (home / "program.py").write_text(textwrap.dedent(PROGRAM))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, home / "program.py", home]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads((home / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "tied", "experts", "old", "adapters", "reward", "reward adapters"])
def test_a_sharded_model_is_the_whole_one(found, name):
    for each in found:
        assert each[name]["buffers"], "rotary frequencies are computed, not read"
        assert each[name]["names"]
        assert each[name]["parameters"]
        assert each[name]["trained"]
        assert each[name]["logits"] <= 1e-6
        assert each[name]["gradients"]


@pytest.mark.parametrize("name", ["plain", "tied", "experts", "old", "adapters", "reward", "reward adapters"])
def test_what_is_saved_is_what_one_rank_would_save(found, name):
    for each in found:
        assert each[name]["saved"]
        assert each[name]["stored"], "tied tensors are one"


def test_packed_rows_run_through_the_head_of_a_sharded_model(found):
    for each in found:
        assert [each[name]["layout"] for name in ("plain", "tied", "adapters", "reward")] == ["packed"] * 4


def test_each_rank_reads_its_part_alone(found):
    for each in found:
        assert each["read in parts"] == [True] * 8


def test_only_what_is_small_is_whole_on_every_rank(found):
    for each in found:
        assert [each[name]["whole"] for name in ("plain", "tied", "experts")] == [1, 1, 1]  # the last norm
        assert each["reward"]["whole"] == 2  # and the new head
        assert each["old"]["whole"] == 3  # and embeddings of positions


def test_no_rank_needs_the_memory_of_the_whole_model(found):
    """It has half of the weights in float32, and sees half of their file in bfloat16: 0.75 times the weights' bytes."""
    for each in found:
        assert each["bytes"] > 600e6
        assert each["peak"] < each["bytes"], each["peak"] / each["bytes"]
