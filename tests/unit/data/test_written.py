"""What is written of rows is read again as the same rows."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from madpo.data.records import RowReader
from madpo.data.written import row_to_json
from madpo.types import Completion, DatasetRow, PromptOnly
from tests.unit.data.forms.rows import OPTIONS, PROMPTS, RESPONSES, SAYINGS, TEXTS, lists, pairs

NAMES = {"id": st.none() | TEXTS, "source": st.none() | TEXTS}
ROWS = st.one_of(
    pairs(SAYINGS, SAYINGS, options=False),
    pairs(PROMPTS, RESPONSES),
    lists(SAYINGS, SAYINGS, ranks=False, options=False),
    lists(PROMPTS, RESPONSES, ranks=False),
    st.builds(Completion, SAYINGS | st.just(""), SAYINGS, **NAMES),
    st.builds(Completion, PROMPTS, RESPONSES, options=OPTIONS, **NAMES),
    st.builds(PromptOnly, SAYINGS, **NAMES),
    st.builds(PromptOnly, PROMPTS, options=OPTIONS, **NAMES),
)


@given(row=ROWS)
def test_a_row_is_read_as_it_was_written(row: DatasetRow) -> None:
    value = json.loads(json.dumps(row_to_json(row)))

    assert RowReader().read(value, 7) == [replace(row, row=7)]
