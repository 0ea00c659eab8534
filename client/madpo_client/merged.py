"""Downloading an adapter as the whole model that it is with its base, merged on this machine."""

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from madpo.errors import FailedPreconditionError
from madpo.model_files.companions import MODEL_RECORD
from madpo.model_files.configs import is_adapter, model_kind, read_config

MergedDtype = Literal["exact", "base"]
"""Of a merged model: `exact` keeps in float32 what the dtype of the base would round, `base` rounds it."""


def stored_base(directory: Path) -> str | None:
    """The stored model that an adapter's files name as its base; None of other models, and of bases elsewhere."""
    if not is_adapter(directory):
        return None
    from madpo.jobs.base import MODEL_ID_PATTERN  # brings pydantic, which most commands do without

    name = str(read_config(directory / "adapter_config.json").get("base_model_name_or_path"))
    return name if re.fullmatch(MODEL_ID_PATTERN, name) else None


def download_merged(
    directory: Path,
    *,
    download: Callable[[Path], object],
    download_base: Callable[[str | None, Path], object],
    dtype: MergedDtype,
) -> Path:
    """Fetch a model, and where it is an adapter its base, and merge them; whole, or not at all.

    Args:
        directory: Must not exist, or be empty.
        download: Fetches the model into a directory.
        download_base: Fetches the base of it; the id is None where the adapter's files do not say it.
        dtype: Of the merged tensors.

    Raises:
        FailedPreconditionError: torch is not installed here, the directory is taken, or the merged model would say
            something else than the adapter with its base.
    """
    try:
        from madpo.models.merge import write_merged
    except ImportError as error:
        raise FailedPreconditionError(
            f"merging runs on this machine and needs torch and peft ({error.name} is not installed): "
            "pip install 'madpo[embedded]', or download the adapter and its base as they are"
        ) from error
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FailedPreconditionError(f"{directory} exists and is not an empty directory; choose another place")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
        adapter, base, merged = (Path(scratch, name) for name in ("adapter", "base", "merged"))
        download(adapter)
        if is_adapter(adapter):
            record = adapter / MODEL_RECORD
            download_base(read_config(record).get("base_model_id") if record.is_file() else None, base)
            kind, _ = model_kind(adapter, base_kind=model_kind(base)[0])
            with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # of peft to transformers
                write_merged(adapter, merged, base_directory=base, kind=kind, exact=dtype == "exact")
        else:
            merged = adapter
        if directory.exists():
            directory.rmdir()
        shutil.move(merged, directory)
    return directory
