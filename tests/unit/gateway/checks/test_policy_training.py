"""A job whose method lacks what it needs is refused by the name of the input, with what to do."""

import re
from typing import Any

import pytest

from madpo.jobs.policy_training import PolicyTrainingSpec
from madpo.losses.registry import METHODS, parse_params
from madpo.types import Dataset, DatasetKind
from madpo_gateway.checks.policy_training import missing_inputs

DATASET_ID = "dataset-" + "1" * 32


def dataset(kind: DatasetKind = DatasetKind.PREFERENCE, *columns: str, rows: int = 100) -> Dataset:
    return Dataset(DATASET_ID, "data", kind, rows, 1, 0.0, columns)


def missing(name: str, data: Dataset, params: dict[str, Any] | None = None, **training: Any) -> list[tuple[str, str]]:
    spec = PolicyTrainingSpec.model_validate(
        {
            "model": {"model_id": "model-" + "1" * 32},
            "dataset": DATASET_ID,
            "method": {"name": name, "params": params or {}},
            "training": training,
        }
    )
    config = parse_params(name, params or {})
    return list(missing_inputs(spec, config, METHODS[name].requirements(config), data))


@pytest.mark.parametrize(
    ("method", "field", "reason"),
    [
        (
            "irpo",
            "dataset",
            "irpo .* needs several scored responses per prompt, .* is a preference dataset: upload a",
        ),
        ("tpo", "dataset", "tpo .* needs a gold response beside each pair, .*: add a column gold"),
        (
            "updpo",
            "dataset",
            "needs the reward model's uncertainty of both responses, .*: add columns chosen_uncert",
        ),
        ("sem_dpo", "dataset", "needs the distance between .*: add a column semantic_distance to the dataset"),
    ],
)
def test_pairs_alone_are_not_enough(method: str, field: str, reason: str) -> None:
    ((found, description),) = missing(method, dataset())

    assert found == field
    assert re.search(reason, description), description


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_missing_where_everything_is_there(method: str) -> None:
    needs_list = METHODS[method].requirements(METHODS[method].config()).list
    columns = ("gold", "chosen_uncertainty", "rejected_uncertainty", "semantic_distance", "reward_margin")

    assert missing(method, dataset(DatasetKind.LIST) if needs_list else dataset(DatasetKind.PREFERENCE, *columns)) == []


def test_parameters_decide_what_is_needed() -> None:
    assert missing("tpo", dataset(), {"sft_weight": 0.0}) == []
    assert missing("slic", dataset(), {"sft_weight": 0.1, "sft_target": "gold"})
    assert missing("sppo", dataset(), {"win_probability": "list"})
    assert missing("updpo", dataset(DatasetKind.PREFERENCE, "chosen_uncertainty"))


def test_methods_of_pairs_take_lists() -> None:
    assert missing("dpo", dataset(DatasetKind.LIST)) == []


def test_kto_needs_another_row_in_the_batch() -> None:
    assert missing("kto", dataset(rows=1))[0][0] == "dataset"
    ((field, description),) = missing("kto", dataset(), global_batch_size=1)
    assert field == "training.global_batch_size"
    assert description.endswith("with training.global_batch_size of at least 2")


def test_a_policy_that_is_moved_on_cannot_be_an_adapter() -> None:
    lora = {"lora": {"rank": 4}}

    ((field, description),) = missing("apo_accel", dataset(), **lora)
    assert field == "training.lora"
    assert "leave lora out, or set method.params.alpha to 0" in description
    assert missing("apo_accel", dataset(), {"alpha": 0.0}, **lora) == []
    assert missing("tr_dpo", dataset(), **lora) == []
