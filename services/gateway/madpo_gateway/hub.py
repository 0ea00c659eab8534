"""Models from the Hugging Face hub, at a pinned commit. The hub library is optional: see `fetch_from_hub`."""

import shutil
from pathlib import Path

from madpo.errors import FailedPreconditionError, NotFoundError

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Files a model directory may hold; everything else stays on the hub."""

_INSTEAD = "download the model where the hub can be reached and upload its directory instead"


def fetch_from_hub(hub_id: str, *, commit: str, directory: Path, endpoint: str | None = None) -> None:
    """Copy the files of one commit into a directory.

    Args:
        hub_id: `owner/name`, or `name`.
        commit: All 40 digits; a branch or tag could mean something else tomorrow.
        directory: Where to; must exist.
        endpoint: URL of the hub; None is the library's default.

    Raises:
        NotFoundError: The hub has no such model or commit.
        FailedPreconditionError: The hub library is not installed here, or the hub does not answer or refuses.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise FailedPreconditionError(
            f"this gateway has no hub access (huggingface_hub is not installed): {_INSTEAD}"
        ) from error
    try:
        snapshot_download(
            hub_id, revision=commit, allow_patterns=list(PATTERNS), local_dir=directory, endpoint=endpoint
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFoundError(f"the hub has no model {hub_id} at commit {commit}, or does not show it to us") from error
    except Exception as error:  # what its HTTP library raises has no root in common with the rest
        raise FailedPreconditionError(f"the hub did not give {hub_id} ({type(error).__name__}): {_INSTEAD}") from error
    # The library keeps notes on the download beside the files.
    shutil.rmtree(directory / ".cache", ignore_errors=True)
