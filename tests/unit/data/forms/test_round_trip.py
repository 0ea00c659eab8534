"""Rows made at random, written in every form that can hold them, come back as they were."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from madpo.data.forms.registry import FORMS
from madpo.data.records import RowReader
from madpo.types import DatasetRow
from tests import data_counts
from tests.unit.data.forms.rows import CASES, Case

pytestmark = pytest.mark.data

MANY = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def read(case: Case, raw: dict[str, Any]) -> DatasetRow:
    reader = RowReader(lists=case.lists)
    (row,) = reader.read(raw, 7)
    assert [(form.name, form.rows) for form in reader.forms()] == [(case.form, 1)]
    return row


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
@MANY
@given(data=st.data())
def test_a_row_comes_back_from_every_form(case: Case, data: st.DataObject) -> None:
    data_counts.note("forms", case.form)
    data_counts.add("property examples")
    row = replace(data.draw(case.rows), row=7)

    raw = case.write(row)

    assert read(case, raw) == row
    # As a file holds it, with its keys in any order, and null where others have something.
    items = list(json.loads(json.dumps(raw)).items())
    assert (
        read(case, dict(reversed(items)) | {"unknown": 1, "system": raw.get("system"), "weight": row_weight(row)})
        == row
    )


def row_weight(row: DatasetRow) -> float | None:
    return getattr(row, "weight", None)


def test_every_form_is_written() -> None:
    assert {case.form for case in CASES} == set(FORMS)
