"""The client: datasets, models and jobs of a gateway, as ordinary synchronous calls."""

from pathlib import Path
from typing import Self, Unpack

from madpo.errors import InvalidArgumentError, UnavailableError
from madpo.rpc.channel import is_loopback
from madpo.rpc.tls import ClientTls
from madpo.types import ServerInfo
from madpo_client.access import Access
from madpo_client.connection import read_connection
from madpo_client.datasets import Datasets
from madpo_client.jobs import Jobs
from madpo_client.models import Models
from madpo_client.references import ModelLike
from madpo_client.retention import Retention
from madpo_client.rows_to_score import PairScore, ResponseScores, RowsToScore
from madpo_client.scoring import RowReading, Scored, Scoring, open_rows_to_score
from madpo_client.session import Session
from madpo_client.settings import ConnectionOptions, client_settings
from madpo_client.sources import Source
from madpo_client.store import Store

ScoreSource = Source | RowsToScore
"""Rows in whatever can be uploaded; or opened before."""


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
        access: Named tokens, and who did what.
        retention: What is kept, and for how long.
        store: Whether what is stored is whole.

    Raises:
        InvalidArgumentError: The token file cannot be read, or options exclude each other.
        FailedPreconditionError: A certificate cannot be used; names it.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        tls_ca: Path | str | None = None,
        tls_cert: Path | str | None = None,
        tls_key: Path | str | None = None,
        plaintext: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        if token is None and token_file is not None:
            token = _read_token(Path(token_file))
        self.server = server
        self.tls = _client_tls(server, ca=tls_ca, cert=tls_cert, key=tls_key, plaintext=plaintext)
        self._session = Session(server, token=token, tls=self.tls, timeout_s=timeout_s)
        self.datasets = Datasets(self._session)
        self.models = Models(self._session)
        self.jobs = Jobs(self._session)
        self.access = Access(self._session)
        self.retention = Retention(self._session)
        self.store = Store(self._session)
        self._scoring = Scoring(self._session)

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

    def score_pairs(
        self, reward_model: ModelLike, rows: ScoreSource, **reading: Unpack[RowReading]
    ) -> Scored[PairScore]:
        """What a reward model says of preference pairs, live: rewards, margins, tokens.

        Rows are read and sent as results are taken, some hundreds ahead. All scores are of one revision.

        Args:
            reward_model: A stored reward model, or a job that has left one.
            rows: Pairs, in whatever can be uploaded; see `Datasets.upload`.
            reading: `format`, `columns`, `lists`, `split`, `config` and `revision`, as of `Datasets.upload`.

        Returns:
            An iterator of one `PairScore` a pair, in order; its `reward_model` is there at once.

        Raises:
            InvalidArgumentError: It is no reward model; while iterating, a row cannot be used or scored; names it.
            FailedPreconditionError: The job has not left its model, or the gateway knows no reward service.
            RevisionMismatchError: While iterating: the reward service has changed the model.
            UnavailableError: The gateway or its reward service cannot be reached; while iterating, it stayed away.
        """
        return self._scoring.pairs(reward_model, _opened(rows, reading))

    def score_responses(
        self, reward_model: ModelLike, rows: ScoreSource, **reading: Unpack[RowReading]
    ) -> Scored[ResponseScores]:
        """What a reward model says of single responses, live; arguments and errors as of `score_pairs`.

        Args:
            reward_model: A stored reward model, or a job that has left one.
            rows: Prompts with a `completion` or `response`, or with a list of `responses`; and what else is uploaded as
                completions or lists.
            reading: As of `score_pairs`.
        """
        return self._scoring.responses(reward_model, _opened(rows, reading))

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


def _opened(rows: ScoreSource, reading: RowReading) -> RowsToScore:
    return rows if isinstance(rows, RowsToScore) else open_rows_to_score(rows, **reading)


def _client_tls(
    server: str, *, ca: Path | str | None, cert: Path | str | None, key: Path | str | None, plaintext: bool
) -> ClientTls | None:
    if (cert is None) != (key is None):
        raise InvalidArgumentError("tls_cert and tls_key come together")
    if plaintext and (ca or cert):
        raise InvalidArgumentError("plaintext excludes tls_ca and tls_cert; leave one of them out")
    if plaintext or (is_loopback(server) and not (ca or cert)):
        return None
    return ClientTls(*(Path(path).expanduser() if path else None for path in (ca, cert, key)))


def _read_token(path: Path) -> str:
    try:
        return path.expanduser().read_text().strip()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the token file {path}: {error.strerror}") from error
