"""Whatever a row holds, it is read or refused by its number: nothing else happens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madpo.data.forms.registry import FORMS, KNOWN_COLUMNS
from madpo.data.records import RowReader
from madpo.errors import InvalidPairError
from madpo.types import content_from_json, content_to_json
from tests import data_counts
from tests.unit.data.forms.rows import CASES
from tests.unit.data.forms.test_round_trip import MANY

pytestmark = pytest.mark.data

KEYS = st.sampled_from(
    ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text", "rank", "id"]
) | st.sampled_from(["completion", "answer", "messages", "tools", "thinking"])
WORDS = st.sampled_from(
    ["user", "assistant", "tool", "system", "human", "gpt", "function_call", "function", "text", "", " ", "{}", "[]"]
) | st.sampled_from(
    ['{"a": ', "a b", "a c", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "\ud800", "\0", "<|x|>"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=4), st.binary(max_size=2)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=2) | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)
SETS = st.sampled_from(sorted(sorted(form.requires) for form in FORMS.values()))
ROWS = st.one_of(
    SETS.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, VALUES))),
    st.dictionaries(st.sampled_from(sorted(KNOWN_COLUMNS)), VALUES, max_size=6),
)
RULES = st.sampled_from([None, "pairs", "best_worst", "keep"])


def outcome(row: Any, rule: Any) -> Any:
    data_counts.add("property examples")
    try:
        return RowReader(lists=rule).read(row, 3)
    except InvalidPairError as error:
        (violation,) = error.violations
        assert violation.field.startswith("row 3")
        assert violation.description
        str(error).encode()  # it must be able to travel
        return None


@settings(MANY, max_examples=300)
@given(ROWS | VALUES, RULES)
def test_any_row_is_read_or_refused_by_its_number(row: Any, rule: Any) -> None:
    for read in outcome(row, rule) or ():
        for content in (read.prompt, getattr(read, "chosen", "")):
            assert content_from_json(content_to_json(content)) == content


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
@settings(MANY, max_examples=6)
@given(data=st.data())
def test_a_row_with_one_wrong_value_is_read_or_refused(case: Any, data: st.DataObject) -> None:
    raw = case.write(data.draw(case.rows))
    column = data.draw(st.sampled_from(sorted(raw)))

    outcome(raw | {column: data.draw(VALUES)}, case.lists)
