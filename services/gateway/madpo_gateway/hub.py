"""Models and datasets from the Hugging Face hub, each at one commit; what `imports` has a process of its own do.

The hub library is optional here.
"""

import errno
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from madpo.data.file_formats import format_of_name
from madpo.errors import FailedPreconditionError, MadpoError, NotFoundError
from madpo.hub_refusals import hub_refusal
from madpo.model_files.configs import MODEL_SUFFIXES
from madpo.model_files.uploads import SKIPPED_ON_HUB
from madpo.v1.dataset_service_pb2 import ImportDatasetRequest
from madpo.v1.model_service_pb2 import ImportModelRequest
from madpo_gateway.requests import is_plain_path, require_match, violation

HUB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$"
REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}){0,4}$"
"""A branch, a tag or a commit, also such as `refs/pr/1`."""
COMMIT_PATTERN = r"^[0-9a-f]{40}$"

PATTERNS = tuple(f"*{suffix}" for suffix in sorted(MODEL_SUFFIXES - {".md"}))
"""Files a model directory may hold; everything else stays on the hub."""

_INSTEAD = "download it where the hub can be reached and upload it instead"


def revision_of(request: ImportModelRequest | ImportDatasetRequest) -> str:
    """The revision that an import asks for, by its new name or the old one. Raises InvalidArgumentError."""
    if request.revision and request.commit:
        raise violation("commit", "is the old name of revision: give revision alone")
    if request.commit:
        return require_match(request.commit, COMMIT_PATTERN, field="commit")
    return require_match(request.revision or "main", REVISION_PATTERN, field="revision")


def find_commit(hub_id: str, revision: str, *, kind: Literal["model", "dataset"], endpoint: str | None = None) -> str:
    """The commit that a revision is now, all 40 digits: what a branch or tag means may change while files come.

    Args:
        hub_id: `owner/name`, or `name`.
        revision: A branch, a tag or a commit.
        kind: What it is a revision of.
        endpoint: URL of the hub; None is the library's default.

    Raises:
        NotFoundError: The hub has no such repository or revision.
        FailedPreconditionError: The hub library is not installed here, or the hub does not answer or refuses.
    """
    if re.fullmatch(COMMIT_PATTERN, revision):
        return revision
    with _asking(f"{kind} {hub_id}", revision):
        from huggingface_hub import HfApi

        commit = HfApi(endpoint=endpoint).repo_info(hub_id, revision=revision, repo_type=kind).sha
        if commit is None or not re.fullmatch(COMMIT_PATTERN, commit):
            raise FailedPreconditionError(f"the hub names no commit for {revision} of {hub_id}: give a full commit")
        return commit


def fetch_from_hub(hub_id: str, *, commit: str, directory: Path, limit_bytes: int, endpoint: str | None = None) -> None:
    """Copy the files of one commit of a model into a directory.

    Args:
        hub_id: `owner/name`, or `name`.
        commit: All 40 digits.
        directory: Where to; must exist.
        limit_bytes: Most that the files may hold together.
        endpoint: URL of the hub; None is the library's default.

    Raises:
        InvalidArgumentError: The files are too large.
        NotFoundError: The hub has no such model or commit.
        FailedPreconditionError: The hub library is not installed here, or the hub does not answer or refuses.
    """
    with _asking(f"model {hub_id}", commit):
        from huggingface_hub import snapshot_download

        sizes = _file_sizes(hub_id, commit=commit, kind="model", endpoint=endpoint)
        total_bytes = sum(
            size_bytes
            for name, size_bytes in sizes.items()
            if _fits(name, PATTERNS) and not _fits(name, SKIPPED_ON_HUB)
        )
        if total_bytes > limit_bytes:
            raise violation("hub_id", f"has {total_bytes} bytes, more than max_model_bytes ({limit_bytes})")
        snapshot_download(
            hub_id,
            revision=commit,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(SKIPPED_ON_HUB),
            local_dir=directory,
            endpoint=endpoint,
        )
    # The library keeps notes on the download beside the files.
    shutil.rmtree(directory / ".cache", ignore_errors=True)


def fetch_dataset_files(
    hub_id: str,
    *,
    commit: str,
    patterns: Sequence[str],
    directory: Path,
    limit_bytes: int,
    endpoint: str | None = None,
) -> list[tuple[str, Path]]:
    """Copy files of rows of one commit of a dataset into a directory.

    Args:
        hub_id: `owner/name`, or `name`.
        commit: All 40 digits.
        patterns: Names of files, or patterns of names; without any the commit must hold one file of rows.
        directory: Where to; must exist.
        limit_bytes: Most that the files may hold together.
        endpoint: URL of the hub; None is the library's default.

    Returns:
        Names and local paths, in the order of the patterns, and by name where one fits several.

    Raises:
        InvalidArgumentError: A pattern fits no file, none is given though there are several files, or they are too
            large; names the files there are.
        NotFoundError: The hub has no such dataset or commit.
        FailedPreconditionError: The hub library is not installed here, or the hub does not answer or refuses.
    """
    with _asking(f"dataset {hub_id}", commit):
        from huggingface_hub import HfApi

        hub = HfApi(endpoint=endpoint)
        sizes = _file_sizes(hub_id, commit=commit, kind="dataset", endpoint=endpoint)
        names = _choose(sorted(sizes), patterns)
        total_bytes = sum(sizes[name] for name in names)
        if total_bytes > limit_bytes:
            raise violation(
                "files", f"have {total_bytes} bytes, more than max_upload_bytes ({limit_bytes}): take fewer"
            )
        return [
            (name, Path(hub.hf_hub_download(hub_id, name, revision=commit, repo_type="dataset", local_dir=directory)))
            for name in names
        ]


def _file_sizes(hub_id: str, *, commit: str, kind: Literal["model", "dataset"], endpoint: str | None) -> dict[str, int]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi(endpoint=endpoint).list_repo_tree(hub_id, revision=commit, repo_type=kind, recursive=True)
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _choose(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    of_rows = [name for name in names if format_of_name(name) and is_plain_path(name)]
    listed = f"it has {', '.join(of_rows[:20]) or 'no file of rows'}"
    if not patterns:
        if len(of_rows) != 1:
            raise violation("files", f"must say which files to take: {listed}")
        return of_rows
    chosen: dict[str, None] = {}
    for index, pattern in enumerate(patterns):
        fitting = [name for name in names if fnmatchcase(name, pattern) and is_plain_path(name)]
        if not fitting:
            raise violation(f"files[{index}]", f"fits no file, {pattern!r:.100}: {listed}")
        chosen |= dict.fromkeys(fitting)
    return list(chosen)


@contextmanager
def _asking(what: str, revision: str) -> Iterator[None]:
    """Turn what the hub library raises into our errors."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise FailedPreconditionError(
            f"this gateway has no hub access (huggingface_hub is not installed): {_INSTEAD}"
        ) from error
    try:
        yield
    except MadpoError:
        raise
    except Exception as error:  # what its HTTP library raises has no root in common with the rest
        if refusal := hub_refusal(error, what, asker="the gateway"):
            raise FailedPreconditionError(refusal) from error
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            raise NotFoundError(
                f"the hub has no {what} at {revision}, or does not show it to us (what is private needs HF_TOKEN)"
            ) from error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise FailedPreconditionError(f"the gateway's scratch disk has no room for {what}") from error
        raise FailedPreconditionError(f"the hub did not give {what} ({type(error).__name__}): {_INSTEAD}") from error
