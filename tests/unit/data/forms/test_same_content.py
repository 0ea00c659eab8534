"""The same pairs are one dataset, whatever form and whatever file they came in."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from madpo.data.files.reading import read_rows
from madpo.data.records import RowReader, parse_rows
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.types import DatasetKind, Message, PreferencePair
from tests import data_counts
from tests.unit.data.forms.rows import CASES

pytestmark = pytest.mark.data

PAIRS = [
    PreferencePair(
        (Message("user", f"question {n}"),), *((Message("assistant", f"{a} {n}"),) for a in ("good", "bad")), id=f"{n}"
    )
    for n in range(3)
]
CHAT_FORMS = sorted(
    {case.form for case in CASES}
    - {"explicit-text", "implicit-text", "scored-list", "nectar", "nemo-rl", "completion", "prompt"}
    - {"messages", "conversations", "instruction", "text"}
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(path: Path) -> str:
        reader = RowReader()
        rows = parse_rows(read_rows(path), reader)
        store = DatasetStore(LocalStore(tmp_path / "store"))
        return store.write(rows, kind=DatasetKind.PREFERENCE, display_name="", scratch=tmp_path / "parts")[0].dataset_id

    return write


def save(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n\n".join(map(json.dumps, rows)))
    return path


def test_one_dataset_under_every_form_of_chats_and_two_formats(write: Any, tmp_path: Path) -> None:
    ids = {}
    for form in CHAT_FORMS:
        case = next(case for case in CASES if case.form == form)
        rows = [case.write(pair) for pair in PAIRS]
        for ending in ("jsonl", "parquet"):
            ids[form, ending] = write(save(rows, tmp_path / f"{form}.{ending}"))

    assert len(set(ids.values())) == 1, ids
    assert len(ids) == 2 * 13


def test_a_name_or_a_source_is_content_and_the_number_of_a_row_is_not(write: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    ids = [
        write(save(changed, tmp_path / "rows.jsonl"))
        for changed in (rows, [rows[0] | {"id": "1"}], [rows[0] | {"source": "s"}], [rows[0] | {"weight": 1}])
    ]

    (tmp_path / "late.jsonl").write_text("\n\n" + json.dumps(rows[0] | {"unread": 1}))
    assert len(set(ids)) == 4
    assert write(tmp_path / "late.jsonl") == ids[0]


def test_what_arrow_adds_to_messages_and_tools_is_taken_out_again(write: Any, tmp_path: Path) -> None:
    """Arrow gives every message, call and schema the keys of all others, holding null."""
    user = {"role": "user", "content": "How warm is it in Rome?"}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    other = {"id": "d", "type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    answer = {"role": "tool", "tool_call_id": "c", "content": "31"}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"properties": {key: {"type": "string"}}}}}
        for name, key in (("weather", "city"), ("time", "zone"))
    ]
    said = {"role": "assistant", "content": "31 degrees."}
    rows = [
        {
            "prompt": [user],
            "chosen": [{"role": "assistant", "tool_calls": [call]}, answer, said],
            "rejected": [{"role": "assistant", "tool_calls": [other]}],
            "tools": tools,
            "chat_template_kwargs": {"thinking": True},
        },
        {
            "prompt": [user],
            "chosen": [said],
            "rejected": [said | {"content": "Hm."}],
            "chat_template_kwargs": {"level": 1},
        },
    ]
    table = pa.Table.from_pylist(rows).to_pylist()
    assert table[0]["tools"][0]["function"]["parameters"]["properties"]["zone"] is None
    data_counts.note("forms", "explicit-chat")

    assert write(save(rows, tmp_path / "rows.parquet")) == write(save(rows, tmp_path / "rows.jsonl"))
