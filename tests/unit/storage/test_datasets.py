"""Datasets: named by content, streamed, verified."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import (
    CorruptObjectError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidPairError,
    NotFoundError,
)
from madpo.rpc import convert
from madpo.storage import datasets
from madpo.storage.datasets import DatasetStore
from madpo.storage.local import LocalStore
from madpo.storage.withdrawals import store_again
from madpo.types import (
    ChatOptions,
    Completion,
    DatasetKind,
    DatasetRow,
    Message,
    PreferencePair,
    PromptOnly,
    ResponseList,
)
from tests.damage import DAMAGES, flip

CHAT = (Message("user", "How was it?"), Message("assistant", "Odd: \U0001f600 \x00 \u2028"), Message("user", ""))
PAIRS: list[DatasetRow] = [
    PreferencePair("The film was", "good", "bad", reward_margin=0.1 + 0.2, row=1),
    PreferencePair(CHAT, (Message("assistant", "a"),), (Message("assistant", "b"),), reward_margin=-3e-300, row=2),
    PreferencePair("", "x", "y", reward_margin=0.0, row=4),
]
ROWS: dict[DatasetKind, list[DatasetRow]] = {
    DatasetKind.PREFERENCE: PAIRS,
    DatasetKind.LIST: [
        ResponseList("The film was", ("good", "bad", "fine"), (1.0, -0.5, 0.25), row=1),
        ResponseList(CHAT, ((Message("assistant", "a"),), (Message("assistant", "b"),)), (0.0, 1e300), row=3),
    ],
    DatasetKind.COMPLETION: [Completion("", "text", row=1), Completion(CHAT, (Message("assistant", "a"),), row=2)],
    DatasetKind.PROMPT: [PromptOnly("text", row=1), PromptOnly(CHAT, row=2)],
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def write(store: LocalStore, tmp_path: Path) -> Any:
    def write(rows: Any, kind: DatasetKind = DatasetKind.PREFERENCE, name: str = "films") -> Any:
        return DatasetStore(store).write(rows, kind=kind, display_name=name, scratch=tmp_path / "scratch")

    return write


@pytest.mark.parametrize("kind", list(DatasetKind))
def test_rows_come_back_as_they_were_written(store: LocalStore, write: Any, kind: DatasetKind) -> None:
    dataset, created = write(iter(ROWS[kind]), kind)

    assert created
    assert list(DatasetStore(store).read(dataset.dataset_id)) == ROWS[kind]
    assert DatasetStore(store).get(dataset.dataset_id) == dataset
    assert (dataset.kind, dataset.rows, dataset.display_name) == (kind, len(ROWS[kind]), "films")
    assert dataset.columns == (("reward_margin",) if kind is DatasetKind.PREFERENCE else ())


def test_what_a_dataset_says_of_its_pairs_comes_back_and_is_part_of_the_content(store: LocalStore, write: Any) -> None:
    notes = {"gold": "fine", "chosen_uncertainty": 0.5, "rejected_uncertainty": 0.0, "semantic_distance": 1.25}
    rows = [PreferencePair("The film was", "good", "bad", row=1, **notes), PreferencePair("", "x", "y", gold="z")]

    dataset, _ = write(rows)

    assert list(DatasetStore(store).read(dataset.dataset_id)) == rows
    assert dataset.columns == ("gold",)
    others = [write([replace(rows[0], **{name: None}), rows[1]])[0].dataset_id for name in notes]
    assert len({dataset.dataset_id, *others}) == 5


def test_other_scores_are_another_dataset(write: Any) -> None:
    ids = {
        write([ResponseList("a", ("b", "c"), scores)], DatasetKind.LIST)[0].dataset_id for scores in ((0, 1), (1, 0))
    }

    assert len(ids) == 2


def test_the_same_rows_are_one_dataset_whatever_their_name_and_numbers(write: Any) -> None:
    first, created = write(PAIRS)
    again, created_again = write(
        [PreferencePair(p.prompt, p.chosen, p.rejected, p.reward_margin, row=9) for p in PAIRS], name="other"
    )

    assert (created, created_again) == (True, False)
    assert again == first


@pytest.mark.parametrize(
    "rows",
    [
        PAIRS[:2],
        PAIRS[::-1],
        [*PAIRS[:2], PreferencePair("", "x", "y", reward_margin=None)],
        [*PAIRS[:2], PreferencePair("", "x", "y", reward_margin=1e-9)],
        [*PAIRS[:2], PreferencePair("", "y", "x", reward_margin=0.0)],
        [*PAIRS[:2], PreferencePair("", "x", (Message("assistant", "y"),), reward_margin=0.0)],
    ],
)
def test_other_rows_are_another_dataset(write: Any, rows: list[DatasetRow]) -> None:
    assert write(PAIRS)[0].dataset_id != write(rows)[0].dataset_id


def test_equal_prompts_of_other_kinds_are_another_dataset(write: Any) -> None:
    ids = {
        write([PromptOnly("a")], DatasetKind.PROMPT)[0].dataset_id,
        write([Completion("a", "")], DatasetKind.COMPLETION)[0].dataset_id,
    }

    assert len(ids) == 2


@pytest.mark.parametrize("limit", ["_PART_ROWS", "_PART_BYTES"])
def test_parts_change_neither_rows_nor_id(
    store: LocalStore, write: Any, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    rows = [PreferencePair(f"prompt {row}", "good", "bad", row=row) for row in range(1, 8)]
    whole, _ = write(rows)
    DatasetStore(store).delete(whole.dataset_id)
    monkeypatch.setattr(datasets, limit, 3 if limit == "_PART_ROWS" else 60)

    dataset, created = write(rows)

    parts = [info.key for info in store.list("datasets/") if info.key.endswith(".parquet")]
    assert (dataset.dataset_id, created, len(parts)) == (whole.dataset_id, True, 3)
    assert list(DatasetStore(store).read(dataset.dataset_id)) == rows


def test_margins_count_only_when_every_row_has_one(write: Any) -> None:
    assert not write([*PAIRS, PreferencePair("", "x", "y")])[0].columns


def test_a_bad_row_stops_the_upload_and_nothing_stays(store: LocalStore, write: Any, tmp_path: Path) -> None:
    def rows() -> Iterator[DatasetRow]:
        yield from PAIRS
        raise InvalidPairError("row 4 has no prompt")

    with pytest.raises(InvalidPairError, match="row 4"):
        write(rows())

    assert list(store.list("")) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_row_of_another_kind_is_named(write: Any) -> None:
    with pytest.raises(InvalidPairError, match="row 7 is not a preference row"):
        write([*PAIRS, PromptOnly("x", row=7)])


def test_an_empty_dataset_is_refused(write: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="no rows"):
        write([])


def test_deleting_and_asking_for_absent_datasets(store: LocalStore, write: Any) -> None:
    dataset, _ = write(PAIRS)

    DatasetStore(store).delete(dataset.dataset_id)

    assert list(store.list("")) == []
    for ask in (DatasetStore(store).get, DatasetStore(store).read, DatasetStore(store).delete):
        with pytest.raises(NotFoundError, match=f"no dataset {dataset.dataset_id}"):
            ask(dataset.dataset_id)


def test_datasets_are_listed_newest_first_in_pages(store: LocalStore, write: Any) -> None:
    written = [write([PromptOnly(str(number))], DatasetKind.PROMPT)[0] for number in range(3)]

    page, token = DatasetStore(store).list(page_size=2)
    rest, end = DatasetStore(store).list(page_size=2, page_token=token)

    assert [*page, *rest] == written[::-1]
    assert end == ""


@pytest.mark.promise("T3")
def test_a_changed_part_is_refused_before_a_row_is_given(store: LocalStore, write: Any) -> None:
    dataset, _ = write(PAIRS)
    key = f"datasets/{dataset.dataset_id}/part-00000.parquet"
    data = bytearray(store.get(key))
    data[100] ^= 4
    store.put(key, bytes(data))

    with pytest.raises(CorruptObjectError, match=key):
        next(DatasetStore(store).read(dataset.dataset_id))


def test_uploading_again_repairs_a_dataset_that_lost_a_part(store: LocalStore, write: Any) -> None:
    dataset, _ = write(PAIRS)
    store.delete(f"datasets/{dataset.dataset_id}/part-00000.parquet")

    again, created = write(PAIRS)

    assert (again.dataset_id, created) == (dataset.dataset_id, True)
    assert list(DatasetStore(store).read(dataset.dataset_id)) == PAIRS


@pytest.mark.parametrize("damage", DAMAGES)
def test_uploading_again_repairs_a_dataset_whose_part_is_damaged(store: LocalStore, write: Any, damage: Any) -> None:
    dataset, _ = write(PAIRS)
    key = f"datasets/{dataset.dataset_id}/part-00000.parquet"
    store.put(key, damage(store.get(key)))

    again, _ = write(PAIRS)

    assert again.dataset_id == dataset.dataset_id
    assert list(DatasetStore(store).read(dataset.dataset_id)) == PAIRS


def test_a_damaged_part_that_another_version_wrote_is_named_with_what_to_do(
    store: LocalStore, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(datasets, "_PART_ROWS", 1)
        dataset, _ = write(PAIRS)
    key = f"datasets/{dataset.dataset_id}/part-00000.parquet"
    whole = store.get(key)
    assert write(PAIRS)[1] is False
    store.put(key, flip(whole))

    with pytest.raises(FailedPreconditionError, match=f"{key} is damaged.*delete {dataset.dataset_id}"):
        write(PAIRS)


def test_single_rows_are_read_from_the_parts_that_hold_them(
    store: LocalStore, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_PART_ROWS", 3)
    rows = [PreferencePair(f"prompt {row}", "good", "bad", row=row) for row in (1, 2, 4, 5, 7, 8, 9)]
    dataset_id = write(rows)[0].dataset_id
    read = DatasetStore(store).read_rows
    assert list(read(dataset_id, [9, 2, 2, 4])) == [rows[1], rows[2], rows[6]]
    assert list(read(dataset_id, [])) == []

    store.put(f"datasets/{dataset_id}/part-00001.parquet", b"damaged")

    assert list(read(dataset_id, [1, 9])) == [rows[0], rows[6]]
    with pytest.raises(CorruptObjectError, match=r"part-00001\.parquet"):
        list(read(dataset_id, [7]))


def test_a_row_that_is_not_there_is_named_after_those_that_are(store: LocalStore, write: Any) -> None:
    dataset_id = write(PAIRS)[0].dataset_id
    rows = DatasetStore(store).read_rows(dataset_id, [3, 4, 99])
    assert next(rows) == PAIRS[2]
    with pytest.raises(NotFoundError, match=f"{dataset_id} has no row 3"):
        next(rows)
    with pytest.raises(NotFoundError, match="no dataset dataset-0"):
        DatasetStore(store).read_rows("dataset-0", [1])


@pytest.mark.parametrize("kind", list(DatasetKind))
def test_a_row_is_the_same_on_the_other_side_of_the_wire(kind: DatasetKind) -> None:
    full = PreferencePair("p", "c", "r", 0.0, 7, gold="g", chosen_uncertainty=0.5, semantic_distance=0.0)
    for row in [*ROWS[kind], full]:
        assert convert.dataset_row_from_proto(convert.dataset_row_to_proto(row)) == row


def test_the_first_row_of_messages_is_known_wherever_it_stands(store: LocalStore, write: Any) -> None:
    answer = (Message("assistant", "a"),)
    text, chat = Completion("", "text"), Completion(CHAT, answer)
    tools = replace(chat, options=ChatOptions(tools='[{"type": "function"}]'))
    known = DatasetStore(store)

    def first(*rows: Completion) -> list[int | None]:
        numbered = [replace(row, row=number) for number, row in enumerate(rows, start=1)]
        dataset_id = write(numbered, DatasetKind.COMPLETION)[0].dataset_id
        return [known.first_chat(dataset_id, tools=tools) for tools in (False, True)]

    assert first(text, text) == [None, None]
    assert first(text, chat, text, chat) == [2, None]
    assert first(text, tools, chat, tools) == [3, 2]


def test_of_rows_that_an_earlier_version_stored_the_first_is_known(
    store: LocalStore, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(*args: Any, metadata: dict[str, Any]) -> Any:
        metadata.pop("first_chats")
        return store_again(*args, metadata=metadata)

    monkeypatch.setattr(datasets, "store_again", as_before)
    chat, text = PromptOnly(CHAT, row=1), PromptOnly("text", row=1)
    ids = [write([row], DatasetKind.PROMPT)[0].dataset_id for row in (chat, text)]

    assert [DatasetStore(store).first_chat(each, tools=False) for each in ids] == [1, None]
    assert [DatasetStore(store).first_chat(each, tools=True) for each in ids] == [None, None]
