"""The table of columns against everything that has a place for each of them."""

from dataclasses import fields

import pytest

from madpo.losses.method import LossBatch, Requirements
from madpo.types import Completion, PreferencePair, PromptOnly, ResponseList
from madpo.types.columns import COLUMNS, OPTION_COLUMNS, REQUIREMENTS, Column, required_columns
from madpo.v1 import dataset_service_pb2 as pb

ROW_FIELDS = {field.name for row in (PreferencePair, ResponseList, Completion, PromptOnly) for field in fields(row)}


def names(of: object) -> set[str]:
    return {field.name for field in fields(of)}  # type: ignore[arg-type]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_a_column_has_its_place_in_rows_contract_and_methods(column: Column) -> None:
    assert column.name in ROW_FIELDS
    assert column.name in pb.DatasetRow.DESCRIPTOR.fields_by_name
    if column.of_pairs:
        assert column.name in names(PreferencePair)
    if column.requirement:
        assert column.requirement in names(Requirements)
        assert column.sort == "content" or column.name in names(LossBatch)
    if column.partner:
        assert any(other.name == column.partner and other.partner == column.name for other in COLUMNS)


def test_every_field_of_a_row_is_a_column() -> None:
    other = {"row", "options", "responses", "scores", "_pair_id"}
    assert {column.name for column in COLUMNS} == ROW_FIELDS - other
    wire = set(pb.DatasetRow.DESCRIPTOR.fields_by_name) - other
    assert {column.name for column in COLUMNS} == wire
    assert set(OPTION_COLUMNS) == {"tools", "chat_template_kwargs"}


def test_a_method_reads_the_columns_of_its_requirements() -> None:
    assert [column.name for column in required_columns(Requirements())] == []
    everything = Requirements(**dict.fromkeys(REQUIREMENTS, True))
    assert [column.name for column in required_columns(everything)] == [
        "gold",
        "chosen_uncertainty",
        "rejected_uncertainty",
        "semantic_distance",
    ]
