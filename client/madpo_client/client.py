"""The client: datasets, models and jobs of a gateway, as ordinary synchronous calls."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar, Unpack

from madpo.data.check.report import CheckReport
from madpo.data.ranking import ListRule
from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.jobs import ModelReference, validate
from madpo.rpc.channel import is_loopback
from madpo.rpc.tls import ClientTls
from madpo.types import Checkpoint, Dataset, DatasetRow, Model, ServerInfo
from madpo_client.check import writing
from madpo_client.connection import read_connection
from madpo_client.jobs import JobHandle, Jobs, ModelLike, job_id_of, model_reference
from madpo_client.progress import row_progress, transfer
from madpo_client.session import Session
from madpo_client.settings import ConnectionOptions, client_settings
from madpo_client.sources import Source, open_source, source_name

T = TypeVar("T")


class Client:
    """A connection to a gateway. Close it, or use it as a context.

    Args:
        server: `host:port` of the gateway.
        token: Bearer token; or give `token_file`.
        token_file: File that holds the bearer token.
        tls_ca: Authority of the gateway's certificate. Without it a gateway on this machine is talked to in plain text,
            any other by TLS with the authorities this system trusts.
        tls_cert: Certificate to show a gateway that lets in only holders of one; with `tls_key`.
        tls_key: Its key.
        plaintext: Talk to a gateway on another machine without TLS. Anybody on the way reads the token.
        timeout_s: Longest wait for an answer, and for each piece of an upload or download.

    Attributes:
        server: `host:port` of the gateway.
        tls: What it is trusted by; None where it is talked to in plain text.
        datasets: Upload, look at and delete datasets.
        models: Upload, import and download models.
        jobs: Train and evaluate.

    Raises:
        InvalidArgumentError: The token file cannot be read, or options exclude each other.
        FailedPreconditionError: A certificate cannot be used; names it.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        plaintext: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        if token is None and token_file is not None:
            token = _read_token(token_file)
        self.server = server
        self.tls = _client_tls(server, ca=tls_ca, cert=tls_cert, key=tls_key, plaintext=plaintext)
        self._session = Session(server, token=token, tls=self.tls, timeout_s=timeout_s)
        self.datasets = Datasets(self._session)
        self.models = Models(self._session)
        self.jobs = Jobs(self._session)

    @classmethod
    def from_environment(cls, **given: Unpack[ConnectionOptions]) -> Self:
        """The gateway that arguments, `MADPO_SERVER` and the like, or a profile name, or else the embedded stack's.

        Args:
            given: As of the constructor, and the name of a `profile`; see `madpo_client.settings.client_settings` for
                what wins over what.

        Raises:
            UnavailableError: No server is named and no embedded stack runs.
            NotFoundError: There is no such profile.
        """
        settings = client_settings(**given)
        if settings.server is None:
            connection = read_connection(settings.expanded_home)
            if connection is None:
                raise UnavailableError("no madpo gateway is known; start one with `madpo up` or set MADPO_SERVER")
            return cls(connection.server, token_file=settings.token_file or Path(connection.token_file))
        return cls(
            settings.server,
            token_file=settings.token_file,
            tls_ca=settings.tls_ca,
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            plaintext=settings.plaintext,
        )

    def server_info(self) -> ServerInfo:
        """Version and clock of the gateway, and the time a call takes. Raises UnauthenticatedError."""
        return self._session.run(self._session.gateway.server_info())

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.server!r})"


def _client_tls(
    server: str, *, ca: Path | None, cert: Path | None, key: Path | None, plaintext: bool
) -> ClientTls | None:
    if (cert is None) != (key is None):
        raise InvalidArgumentError("tls_cert and tls_key come together")
    if plaintext and (ca or cert):
        raise InvalidArgumentError("plaintext excludes tls_ca and tls_cert; leave one of them out")
    if plaintext or (is_loopback(server) and not (ca or cert)):
        return None
    return ClientTls(*(path and path.expanduser() for path in (ca, cert, key)))


class Datasets:
    """Datasets of a gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        format: str | None = None,  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: ListRule | None = None,
        progress: bool = False,
    ) -> Dataset:
        """Upload rows; the same content twice is one dataset, whatever it came in.

        An upload that breaks off goes on where it stopped, by itself while the gateway is away for a while, or when
        the same files are uploaded again.

        Args:
            source: A file of JSON Lines, JSON, Parquet, Arrow or CSV, plain or compressed with gzip or zstd; several,
                in the order of their rows; a directory that `datasets` saved, or of files of one format; or the rows
                themselves: any iterable of mappings, such as a `datasets.Dataset`.
            name: A label; by default the file's name.
            format: `jsonl`, `json`, `parquet`, `arrow` or `csv`; by default told from content and name.
            columns: Our names of columns to the source's, where they differ: `{"chosen": "best"}`; "" leaves a column
                unread. Which forms of rows are found by themselves, docs/data.md says.
            lists: What becomes of ranked responses: all `pairs`, the `best_worst` one, or `keep` the list. Without a
                choice a list of scores stays one, and more than two ranked responses are refused.
            progress: Show a progress bar on a terminal.

        Returns:
            The dataset; its `forms` say what was found in this source, and what was read as what.

        Raises:
            InvalidArgumentError: A row is wrong; names it.
            UnavailableError: The gateway cannot be reached, or stayed away.
        """
        with open_source(source) as paths:
            label = name if name is not None else source_name(source)
            total_bytes = sum(map(_size_bytes, paths))
            with transfer(f"Uploading {paths[0].name}", total_bytes, shown=progress) as on_bytes:
                upload = self._session.gateway.upload_dataset(
                    paths,
                    display_name=label,
                    format=format or "",
                    columns=columns,
                    lists=lists or "",
                    on_bytes=on_bytes,
                )
                return self._session.run(upload)[0]

    def import_from_hub(
        self,
        hub_id: str,
        *,
        commit: str,
        files: Sequence[str] = (),
        format: str | None = None,  # noqa: A002
        columns: Mapping[str, str] | None = None,
        lists: ListRule | None = None,
    ) -> Dataset:
        """Let the gateway fetch a dataset from the hub.

        Args:
            hub_id: `owner/name`.
            commit: The full 40-digit commit: what was imported can be said for ever.
            files: Names or patterns such as `data/train-*.parquet`, in the order of their rows; may be left out where
                the repository has one file of rows.
            format: As of `upload`.
            columns: As of `upload`.
            lists: As of `upload`.

        Raises:
            InvalidArgumentError: A row is wrong, or it is not clear which files are meant; names them.
            NotFoundError: The hub has no such dataset or commit.
            FailedPreconditionError: The gateway has no access to the hub.
        """
        imported = self._session.gateway.import_dataset(
            hub_id, commit=commit, files=files, format=format or "", columns=columns, lists=lists or ""
        )
        return self._session.run(imported)[0]

    def get(self, dataset_id: str) -> Dataset:
        """Raises NotFoundError."""
        return self._session.run(self._session.gateway.get_dataset(dataset_id))

    def delete(self, dataset_id: str) -> None:
        """Raises NotFoundError."""
        self._session.run(self._session.gateway.delete_dataset(dataset_id))

    def check(
        self,
        dataset: Dataset | str,
        *,
        held_out: Dataset | str | None = None,
        rows_file: Path | str | None = None,
        progress: bool = False,
    ) -> CheckReport:
        """Let the gateway look at a stored dataset; `madpo_client.check.check_file` does the same with a file.

        Args:
            dataset: What to look at.
            held_out: A dataset whose prompts should not be in it.
            rows_file: Where to write a JSON line for each row of each finding.
            progress: Count the rows on a terminal.

        Raises:
            NotFoundError: There is no such dataset.
            CorruptObjectError: A part of it is damaged.
        """
        with writing(rows_file) as file, row_progress("Checking", shown=progress) as on_rows:
            check = self._session.gateway.check_dataset(
                _dataset_id(dataset),
                held_out_dataset_id=None if held_out is None else _dataset_id(held_out),
                rows_file=file,
                on_rows=on_rows,
            )
            return self._session.run(check)

    def read_rows(self, dataset_id: str, numbers: Iterable[int]) -> list[DatasetRow]:
        """The rows of some numbers (as in the uploaded file, from 1), in order, each once. Raises NotFoundError."""
        return self._session.run(self._session.gateway.read_dataset_rows(dataset_id, numbers))

    def list(self) -> list[Dataset]:
        """All datasets."""
        return self._session.run(_all_pages(self._session.gateway.list_datasets))


class Models:
    """Models and checkpoints of a gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def upload(self, directory: Path | str, *, name: str | None = None, progress: bool = False) -> Model:
        """Upload a Hugging Face model directory (safetensors, tokenizer, config); the same content twice is one model.

        Raises:
            InvalidArgumentError: Not a model directory, or it holds a file of another kind; names it.
        """
        directory = Path(directory)
        total_bytes = sum(map(_size_bytes, directory.rglob("*")))
        with transfer(f"Uploading {directory.name}", total_bytes, shown=progress) as on_bytes:
            label = directory.absolute().name if name is None else name
            upload = self._session.gateway.upload_model(directory, display_name=label, on_bytes=on_bytes)
            return self._session.run(upload)[0]

    def import_from_hub(self, hub_id: str, *, commit: str) -> Model:
        """Let the gateway fetch a model from the hub.

        Args:
            hub_id: `owner/name`.
            commit: The full 40-digit commit: what was imported can be said for ever.
        """
        return self._session.run(self._session.gateway.import_model(hub_id, commit=commit))[0]

    def get(self, model_id: str) -> Model:
        """Raises NotFoundError."""
        return self._session.run(self._session.gateway.get_model(model_id))

    def checkpoints(self, job: JobHandle | str) -> list[Checkpoint]:
        """Checkpoints of a training job, newest first."""
        return self._session.run(self._session.gateway.list_checkpoints(job_id_of(job)))

    def download(
        self,
        model: ModelLike,
        directory: Path | str,
        *,
        step: int | None = None,
        weights: bool = True,
        progress: bool = False,
    ) -> Path:
        """Download a model, a job's final model or its checkpoint of `step`; whole and verified, or not at all.

        Args:
            model: What to download.
            directory: Must not exist, or be empty.
            step: With a job: that checkpoint.
            weights: False leaves them out: the tokenizer and the configuration alone.
            progress: Count the bytes on a terminal.

        Raises:
            InvalidArgumentError: `step` was given without a job.
            NotFoundError: No such model, job or checkpoint.
            FailedPreconditionError: The job has not succeeded, or the directory is taken.
            CorruptObjectError: A file arrived damaged; names it.
        """
        reference = model_reference(model)
        if step is not None:
            reference = validate(ModelReference, {"job_id": reference.job_id, "step": step}, path="model")
        with transfer("Downloading", None, shown=progress) as on_bytes:
            download = self._session.gateway.download_model(
                Path(directory),
                model_id=reference.model_id,
                job_id=reference.job_id,
                step=reference.step,
                weights=weights,
                on_bytes=on_bytes,
            )
            return self._session.run(download)

    def list(self) -> list[Model]:
        """All models."""
        return self._session.run(_all_pages(self._session.gateway.list_models))


async def _all_pages(fetch: Callable[..., Awaitable[tuple[list[T], str]]]) -> list[T]:
    items, token = await fetch()
    while token:
        page, token = await fetch(page_token=token)
        items += page
    return items


def _dataset_id(dataset: Dataset | str) -> str:
    return dataset if isinstance(dataset, str) else dataset.dataset_id


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_token(path: Path) -> str:
    try:
        return path.expanduser().read_text().strip()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the token file {path}: {error.strerror}") from error
