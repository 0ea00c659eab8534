"""What cannot be read in parts is read whole, and the log says why."""

import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from madpo.errors import FailedPreconditionError, InvalidArgumentError
from madpo.models import parts
from madpo.models.load import load_causal_lm
from tests.model_directories import save_directory


@pytest.fixture
def directory(make_toy_lm, make_toy_tokenizer, tmp_path):
    save_directory(make_toy_lm(), make_toy_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def nothing(model: nn.Module) -> None:
    """Divides nothing."""


def impossible(model: nn.Module) -> None:
    raise RuntimeError("no process group")


def test_a_model_that_is_not_divided_is_the_whole_one(directory):
    whole, found = load_causal_lm(directory), load_causal_lm(directory, divide=nothing)

    assert type(found) is type(whole)
    assert all(torch.equal(found.get_parameter(name), value) for name, value in whole.named_parameters())
    assert all(torch.equal(found.get_buffer(name), value) for name, value in whole.named_buffers())
    assert not found.training


def test_what_goes_wrong_is_said_and_the_model_is_read_whole(directory, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_causal_lm(directory, divide=impossible)

    assert not any(isinstance(value, DTensor) for value in found.parameters())
    assert "each rank reads the whole model before it keeps its part: no process group" in caplog.text


@pytest.mark.parametrize(
    ("operations", "is_refused"),
    [
        ([("MergeModulelist", 0)], False),
        ([("MergeModulelist", 0), ("Concatenate", 1)], False),
        ([("Concatenate", 0)], True),
        ([("Chunk", 0)], True),
        ([("MergeModulelist", 1)], True),
        ([("MergeModulelist", 0), ("Transpose", 0)], True),
    ],
)
def test_weights_made_of_several_are_read_in_parts_only_where_rows_stay_apart(operations, is_refused, make_toy_lm):
    model = make_toy_lm()
    model._weight_conversions = [
        SimpleNamespace(operations=[type(name, (), {"dim": dim})() for name, dim in operations]),
        SimpleNamespace(),  # one that only renames
    ]

    assert bool(parts._refusal(model)) is is_refused


def test_files_that_are_wrong_are_refused_as_ever(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FailedPreconditionError, match=r"lacks 1 weight .*model\.norm\.weight"):
        load_causal_lm(directory, divide=nothing)

    path.write_bytes(b"none")
    with pytest.raises(InvalidArgumentError, match="cannot load the model in model"):
        load_causal_lm(directory, divide=nothing)
