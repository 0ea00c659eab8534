"""What can be uploaded as a dataset: files, several of them, directories, rows in memory."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from madpo.errors import InvalidArgumentError
from madpo_client.sources import Source, open_source, source_name

pytestmark = pytest.mark.data

ROWS = [{"prompt": "a", "chosen": "b\u00e4\n", "rejected": "c"}, {"prompt": "d", "chosen": None, "rejected": [1.5]}]


def sent(source: Source) -> list[str]:
    """Names of the files that are sent, in order."""
    with open_source(source) as paths:
        return [path.name for path in paths]


def make(directory: Path, *names: str) -> Path:
    directory.mkdir()
    for name in names:
        (directory / name).write_text("{}")
    return directory


def test_one_path_or_several_are_sent_in_the_order_given(tmp_path: Path) -> None:
    assert sent(tmp_path / "b.jsonl") == sent(str(tmp_path / "b.jsonl")) == ["b.jsonl"]
    assert sent([tmp_path / "b.jsonl", str(tmp_path / "a.csv")]) == ["b.jsonl", "a.csv"]
    assert sent(path for path in (tmp_path / "b.jsonl", tmp_path / "a.csv")) == ["b.jsonl", "a.csv"]


def test_a_label_is_the_name_without_its_endings() -> None:
    sources: list[Source] = ["data/v1.2-pairs.jsonl", "pairs.json.gz", Path("saved"), ["a.jsonl"], ROWS]

    assert list(map(source_name, sources)) == ["v1.2-pairs", "pairs", "saved", "", ""]


def test_rows_in_memory_are_in_a_file_until_they_are_sent() -> None:
    def generate() -> Iterator[dict[str, Any]]:
        yield from ROWS

    for source in (ROWS, tuple(ROWS), generate()):
        with open_source(source) as (path,):
            assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
        assert not path.exists()
    with open_source([]) as (path,):
        assert path.read_text() == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ([ROWS[0], {"prompt": object()}], "row 2 is no JSON object"),
        ([{"margin": float("nan")}], "row 1 is no JSON object"),
        (["a.jsonl", {"prompt": "a"}], "files and rows are mixed"),
        ([3], "row 1 is no JSON object: it is int"),
        ({"train": ROWS, "test": ROWS}, "holds the splits 'train', 'test', give one of them"),
    ],
)
def test_what_is_no_source_is_named(source: Any, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason), open_source(source):
        pass


def test_a_saved_dataset_is_its_shards_in_their_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": [{"role": "user", "content": str(number)}]} for number in range(10)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=3)

    assert sent(tmp_path / "saved") == [f"data-0000{shard}-of-00003.arrow" for shard in range(3)]


def test_a_view_of_a_saved_dataset_is_refused_since_its_files_hold_other_rows(tmp_path: Path) -> None:
    saved = make(tmp_path / "saved", "data-00000-of-00001.arrow")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": [{"filename": "x.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))

    with pytest.raises(InvalidArgumentError, match="flatten_indices"):
        sent(saved)


@pytest.mark.parametrize("state", ["{", "[]", "{}", '{"_data_files": []}', '{"_data_files": [{"filename": "../x"}]}'])
def test_a_directory_that_lies_about_its_files_is_refused(tmp_path: Path, state: str) -> None:
    saved = make(tmp_path / "saved")
    (saved / "state.json").write_text(state)

    with pytest.raises(InvalidArgumentError, match=r"state\.json"):
        sent(saved)


def test_a_directory_of_files_of_one_format_is_those_by_name(tmp_path: Path) -> None:
    names = ("train-00001.parquet", "train-00000.parquet", "README.md", ".hidden.parquet", "dataset_infos.json")

    assert sent(make(tmp_path / "d", *names)) == ["train-00000.parquet", "train-00001.parquet"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "found none"),
        (("a.parquet", "b.csv"), "files of one format, found a.parquet, b.csv"),
        (("train-0.parquet", "test-0.parquet"), "holds files of the splits test, train"),
        (("train_0.jsonl", "validation.jsonl"), "holds files of the splits train, validation"),
        (("dataset_dict.json",), "holds the splits"),
    ],
)
def test_a_directory_that_could_mean_several_things_is_refused(
    tmp_path: Path, names: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        sent(make(tmp_path / "d", *names))


def rows_of(source: Source, **options: Any) -> list[Any]:
    with open_source(source, **options) as (path,):
        return [json.loads(line) for line in path.read_text().splitlines()]


TABLE = [
    {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "margin": 1.5, "n": 1},
    {"prompt": None, "chosen": [], "margin": None, "n": 2},
]


def test_tables_of_pandas_polars_and_arrow_are_rows() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    table = pa.Table.from_pylist(TABLE)

    for source in (table, table.to_batches()[0], table.to_reader(), pandas.DataFrame(TABLE), table.to_pandas()):
        assert rows_of(source) == TABLE
    assert rows_of(polars.DataFrame(TABLE)) == rows_of(polars.LazyFrame(TABLE)) == TABLE
    for column in (pandas.Series(["a"]), polars.Series(["a"])):
        with pytest.raises(InvalidArgumentError, match="a Series is one column"):
            rows_of(column)
    with pytest.raises(InvalidArgumentError, match="columns must be named by text, got 0"):
        rows_of(pandas.DataFrame([["a"]]))


def test_datasets_of_any_sort_are_rows_and_splits_are_chosen_by_name() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(TABLE)
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select([0])})

    assert rows_of(dataset) == rows_of(dataset.to_iterable_dataset()) == rows_of(splits, split="train") == TABLE
    assert rows_of(dataset.select([0]).with_format("numpy")) == TABLE[:1]
    with pytest.raises(InvalidArgumentError, match="splits 'train', 'test', give one of them, or split="):
        rows_of(splits)
    with pytest.raises(InvalidArgumentError, match="no split 'trian'; did you mean train"):
        rows_of(splits, split="trian")
    with pytest.raises(InvalidArgumentError, match="split='train' is for a mapping of splits, got Dataset"):
        rows_of(dataset, split="train")


def test_times_are_iso_text_in_every_source() -> None:
    datasets, pandas, polars = map(pytest.importorskip, ("datasets", "pandas", "polars"))
    at = dt.datetime(2024, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
    rows = [{"prompt": "a", "created_at": at, "day": at.date(), "took": dt.timedelta(minutes=1)}]
    expected = {"prompt": "a", "created_at": "2024-05-06T07:08:09+00:00", "day": "2024-05-06", "took": 60.0}

    for source in (rows, pandas.DataFrame(rows), polars.DataFrame(rows), pa.Table.from_pylist(rows)):
        assert rows_of(source) == [expected]
    dataset = datasets.Dataset.from_list([{"at": at.replace(tzinfo=None)}])
    for source in (dataset, dataset.with_format("numpy")):
        assert rows_of(source)[0]["at"].startswith("2024-05-06T07:08:09")


def test_cells_without_a_value_are_null_in_every_source() -> None:
    pandas, numpy = pytest.importorskip("pandas"), pytest.importorskip("numpy")
    nothing = [None, float("nan"), numpy.float32("nan"), numpy.datetime64("NaT"), pandas.NA, pandas.NaT]

    for value in nothing:
        row = {"prompt": "a", "score": value}
        assert rows_of([row]) == rows_of(pandas.DataFrame([row])) == [{"prompt": "a", "score": None}]


def test_a_column_that_is_read_and_cannot_be_sent_is_named() -> None:
    nan = float("nan")

    for row, column in (
        ({"prompt": "a", "margin": nan}, "margin holds nan"),
        ({"prompt": "a", "score_chosen": nan}, "score_chosen holds nan"),
        ({"prompt": "a", "scores": [1.0, nan]}, "scores holds .*nan"),
        ({"prompt": "a", "other": float("inf")}, "other holds .*inf"),
        ({"prompt": "a", "picture": object()}, "picture holds an? object"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"row 1 is no JSON object: {column}"):
            rows_of([row])
    with pytest.raises(InvalidArgumentError, match="row 1 is no JSON object: score holds nan"):
        rows_of([{"prompt": "a", "score": nan}], columns={"margin": "score"})
    assert rows_of([{"margin": nan}], columns={"margin": ""}) == [{"margin": None}]


def test_what_is_no_source_is_refused_by_its_type() -> None:
    with pytest.raises(InvalidArgumentError, match="int is no source of rows"):
        rows_of(3)
