"""Datasets of the Hugging Face hub, read on this machine by the `datasets` library: `hub:owner/name`."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.hub_refusals import hub_refusal
from madpo.spelling import did_you_mean
from madpo_client.extras import needs_extra

logger = logging.getLogger(__name__)
"""Says, as INFO, which commit a revision is."""

PREFIX = "hub:"
_SHOWN_DIGITS = 12


def is_on_hub(source: Any) -> bool:
    """Whether a source of rows is the id of a dataset of the hub; a path loses nothing of `hub:` on its way here."""
    return isinstance(source, (Path, str)) and str(source).startswith(PREFIX)


def say_commit(hub_id: str, revision: str, commit: str) -> None:
    """Tell which commit a branch or tag is now."""
    if commit and commit != revision:
        logger.info("%s: %s is commit %s", hub_id, revision, commit)


def dataset_name(hub_id: str, commit: str, *, config: str | None = None, split: str | None = None) -> str:
    """A label that says what was read: `owner/name/config/split@commit`."""
    return f"{'/'.join(filter(None, (hub_id, config, split)))}@{commit[:_SHOWN_DIGITS]}"


def open_dataset(
    hub_id: str, *, split: str | None, config: str | None, revision: str | None
) -> tuple[Iterator[Mapping[str, Any]], str]:
    """The rows of a split, downloaded first, and a label for them.

    Args:
        hub_id: `owner/name`.
        split: May be left out where there is one.
        config: The configuration, where the dataset has several.
        revision: A branch, a tag or a commit; without one `main`.

    Raises:
        InvalidArgumentError: It is not clear which split or configuration is meant; names those there are.
        NotFoundError: The hub has no such dataset or revision, or does not show it to us.
        FailedPreconditionError: The hub does not answer or refuses.
        MissingExtraError: The packages of the extra `hub` are missing.
    """
    with needs_extra("hub", "reading a dataset of the hub"):
        import datasets
        import huggingface_hub
        from huggingface_hub import errors

    revision = revision or "main"
    try:
        hub = huggingface_hub.HfApi()
        commit = hub.dataset_info(hub_id, revision=revision).sha or revision
        # The hub tells everybody of what is gated; `datasets` raises nothing that says who is refused.
        hub.auth_check(hub_id, repo_type="dataset")
        say_commit(hub_id, revision, commit)
        # Of many configurations or splits none is taken in silence.
        config = _choose("config", config, datasets.get_dataset_config_names(hub_id, revision=commit), hub_id)
        split = _choose("split", split, datasets.get_dataset_split_names(hub_id, config, revision=commit), hub_id)
        rows = datasets.load_dataset(hub_id, config, split=split, revision=commit)
    except InvalidArgumentError:
        raise
    except Exception as error:  # what its HTTP library raises has no root in common with the rest
        if refusal := hub_refusal(error, f"dataset {hub_id}", asker="this machine"):
            raise FailedPreconditionError(refusal) from error
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            raise NotFoundError(
                f"the hub has no dataset {hub_id} at {revision}, or does not show it to us (what is private needs "
                "HF_TOKEN)"
            ) from error
        raise FailedPreconditionError(f"the hub did not give {hub_id}: {type(error).__name__}: {error}") from error
    return iter(rows), dataset_name(hub_id, commit, config=None if config == "default" else config, split=split)


def _choose(what: str, given: str | None, names: list[str], hub_id: str) -> str:
    listed = f"{hub_id} has {', '.join(names) or 'none'}"
    if given is None and len(names) != 1:
        raise InvalidArgumentError(f"{what} is not given, and {listed}: give one of them")
    if given is not None and given not in names:
        raise InvalidArgumentError(f"there is no {what} {given!r}{did_you_mean(given, names)}: {listed}")
    return given or names[0]
