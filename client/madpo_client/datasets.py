"""Datasets of a gateway."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from madpo.data.check.report import CheckReport
from madpo.data.ranking import ListRule
from madpo.data.written import row_to_json
from madpo.errors import AlreadyExistsError, InvalidArgumentError
from madpo.types import Dataset, DatasetRow, StoreFinding
from madpo_client.check import writing
from madpo_client.deprecation import renamed
from madpo_client.hub import PREFIX, is_on_hub, open_dataset, say_commit
from madpo_client.job import JobHandle
from madpo_client.lookup import References, say_kept_name, say_unreadable
from madpo_client.progress import row_progress, transfer
from madpo_client.session import Session
from madpo_client.sources import Source, open_source, size_bytes_of, source_name


class Datasets:
    """Datasets of a gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        format: str | None = None,  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: ListRule | None = None,
        split: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        progress: bool = False,
    ) -> Dataset:
        """Upload rows; the same content twice is one dataset, whatever it came in.

        An upload that breaks off goes on where it stopped, by itself while the gateway is away for a while, or when
        the same files are uploaded again.

        Args:
            source: A file of JSON Lines, JSON, Parquet, Arrow or CSV, plain or compressed with gzip or zstd; several,
                in the order of their rows; a directory that `datasets` saved, or of files of one format; or the rows
                themselves: any iterable of mappings, such as a `datasets.Dataset` or `IterableDataset`, a generator,
                or a table of pandas, polars (also a LazyFrame) or Arrow. `hub:owner/name` is a dataset of the Hugging
                Face hub, which the `datasets` library reads on this machine.
            name: A label; by default the file's name, or of a dataset of the hub its id, split and commit.
                Content that is stored already keeps its name, which is logged.
            format: `jsonl`, `json`, `parquet`, `arrow` or `csv`; by default told from content and name.
            columns: Our names of columns to the source's, where they differ: `{"chosen": "best"}`; "" leaves a column
                unread. Which forms of rows are found by themselves, docs/data.md says.
            lists: What becomes of ranked responses: all `pairs`, the `best_worst` one, or `keep` the list. Without a
                choice a list of scores stays one, and more than two ranked responses are refused.
            split: Which split of a `datasets.DatasetDict`, of any mapping of splits, or of a dataset of the hub.
            config: Which configuration of a dataset of the hub.
            revision: Which branch, tag or commit of a dataset of the hub; without one `main`. The full commit
                that it is now is logged.
            progress: Show a progress bar on a terminal.

        Returns:
            The dataset; its `forms` say what was found in this source, and what was read as what.

        Raises:
            InvalidArgumentError: A row is wrong; names it. Or it is not clear which split or configuration is meant.
            NotFoundError: The hub has no such dataset or revision.
            UnavailableError: The gateway cannot be reached, or stayed away.
        """
        found_name = source_name(source)
        if is_on_hub(source):
            hub_id = str(source).removeprefix(PREFIX)
            source, found_name = open_dataset(hub_id, split=split, config=config, revision=revision)
            split = None
        elif config is not None or revision is not None:
            raise InvalidArgumentError(f"config and revision are for datasets of the hub, such as {PREFIX}owner/name")
        with open_source(source, split=split, columns=columns) as paths:
            label = name if name is not None else found_name
            total_bytes = sum(map(size_bytes_of, paths))
            with transfer(f"Uploading {paths[0].name}", total_bytes, shown=progress) as view:
                upload = self._session.gateway.upload_dataset(
                    paths,
                    display_name=label,
                    format=format or "",
                    columns=columns,
                    lists=lists or "",
                    on_bytes=view.on_bytes,
                    on_rows=view.on_rows if progress else None,
                )
                dataset, _ = self._session.run(upload)
        say_kept_name(dataset, label)
        return dataset

    def import_from_hub(
        self,
        hub_id: str,
        *,
        revision: str | None = None,
        files: Sequence[str] = (),
        format: str | None = None,  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: ListRule | None = None,
        commit: str | None = None,
    ) -> Dataset:
        """Let the gateway fetch a dataset from the hub.

        Args:
            hub_id: `owner/name`.
            revision: A branch, a tag or a commit; without one `main`. The full commit that it is now is logged, and its
                beginning is part of the dataset's name.
            files: Names or patterns such as `data/train-*.parquet`, in the order of their rows; may be left out where
                the repository has one file of rows.
            format: As of `upload`.
            columns: As of `upload`.
            lists: As of `upload`.
            commit: The old name of `revision`.

        Raises:
            InvalidArgumentError: A row is wrong, or it is not clear which files are meant; names them.
            NotFoundError: The hub has no such dataset or revision.
            FailedPreconditionError: The gateway has no access to the hub.
        """
        revision = renamed("commit", commit, "revision", revision) or "main"
        imported = self._session.gateway.import_dataset(
            hub_id, revision=revision, files=files, format=format or "", columns=columns, lists=lists or ""
        )
        dataset, _, found = self._session.run(imported)
        say_commit(hub_id, revision, found)
        return dataset

    def get(self, dataset_id: str) -> Dataset:
        """A dataset by its id, or what stands for one. Raises NotFoundError."""
        return self._session.run(self._session.gateway.get_dataset(self._references.dataset_id(dataset_id)))

    def delete(self, dataset_id: Dataset | str) -> str:
        """Delete a dataset, also one that is damaged, and the tokens made of it; gives its id.

        Raises:
            NotFoundError: There is no such dataset.
            FailedPreconditionError: A job that is not over needs it; names the job.
        """
        dataset_id = self._references.dataset_id(dataset_id)
        self._session.run(self._session.gateway.delete_dataset(dataset_id))
        return dataset_id

    def check(
        self,
        dataset: Dataset | str,
        *,
        eval_dataset: Dataset | str | None = None,
        rows_file: Path | str | None = None,
        progress: bool = False,
        held_out: Dataset | str | None = None,
    ) -> CheckReport:
        """Let the gateway look at a stored dataset; `madpo_client.check.check_file` does the same with a file.

        Args:
            dataset: What to look at.
            eval_dataset: A dataset whose prompts should not be in it.
            rows_file: Where to write a JSON line for each row of each finding.
            progress: Count the rows on a terminal.
            held_out: The old name of `eval_dataset`.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: A part of it is damaged.
        """
        eval_dataset = renamed("held_out", held_out, "eval_dataset", eval_dataset)
        with writing(rows_file) as file, row_progress("Checking", shown=progress) as on_rows:
            check = self._session.gateway.check_dataset(
                self._references.dataset_id(dataset),
                eval_dataset_id=None if eval_dataset is None else self._references.dataset_id(eval_dataset),
                rows_file=file,
                on_rows=on_rows,
            )
            return self._session.run(check)

    def read_rows(self, dataset_id: str, numbers: Iterable[int]) -> list[DatasetRow]:
        """The rows of some numbers (as in the uploaded file, from 1), in order, each once. Raises NotFoundError."""
        return self._session.run(
            self._session.gateway.read_dataset_rows(self._references.dataset_id(dataset_id), numbers)
        )

    def rows(self, dataset: Dataset | JobHandle | str) -> Iterator[DatasetRow]:
        """All rows of a dataset, in order, as they arrive. Raises NotFoundError, CorruptObjectError."""
        return self._session.iterate(self._session.gateway.download_dataset(self._references.dataset_id(dataset)))

    def download(self, dataset: Dataset | JobHandle | str, path: Path | str) -> Path:
        """Write a dataset as JSON Lines, which can be uploaded again as the same dataset.

        Args:
            dataset: Which; also the job that leaves it.
            path: The file; it has its name once it is whole.

        Raises:
            NotFoundError: There is no such dataset.
            AlreadyExistsError: There is a file of that name.
        """
        path = Path(path)
        if path.exists():
            raise AlreadyExistsError(f"{path} is there already: give another name, or remove it")
        rows = self.rows(dataset)  # raises before there is a file
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row_to_json(row), ensure_ascii=False) + "\n")
        partial.replace(path)
        return path

    def list(self, *, on_unreadable: Callable[[StoreFinding], object] = say_unreadable) -> list[Dataset]:
        """All datasets, the one stored last first.

        Args:
            on_unreadable: Told of each that cannot be read and is left out; by default a warning is logged.
        """
        return list(self._session.each(partial(self._session.gateway.list_datasets, on_unreadable=on_unreadable)))
