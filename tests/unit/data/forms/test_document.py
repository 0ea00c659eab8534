"""docs/data.md: its examples are read as what it says they are."""

import json
import re
from pathlib import Path

import pytest

from madpo.data.columns import ALIASES, PAIR_COLUMNS, ROW_COLUMNS
from madpo.data.forms.registry import FORMS
from madpo.data.records import RowReader

pytestmark = pytest.mark.data

DOCUMENT = (Path(__file__).parents[4] / "docs/data.md").read_text()
EXAMPLES = dict(re.findall(r"^### ([a-z-]+)\n.*?^```jsonl\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL))


def test_every_form_has_its_example() -> None:
    assert set(EXAMPLES) == set(FORMS)
    assert len(FORMS) == 24, "README.md speaks of twenty-four forms"


@pytest.mark.parametrize("form", EXAMPLES)
def test_an_example_is_two_rows_of_its_form(form: str) -> None:
    lines = EXAMPLES[form].splitlines()
    reader = RowReader()

    assert [len(reader.read(json.loads(line), number)) for number, line in enumerate(lines, start=1)] == [1, 1]
    assert [(found.name, found.rows) for found in reader.forms()] == [(form, 2)]


def test_every_column_is_explained() -> None:
    for column in (*PAIR_COLUMNS, *ROW_COLUMNS, *ALIASES):
        assert f"`{column}`" in DOCUMENT, column
