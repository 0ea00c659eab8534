"""Which stored model an adapter belongs to, where its own files are all that says it."""

import re
from pathlib import Path
from typing import Any

from madpo.errors import InvalidArgumentError
from madpo.jobs.base import MODEL_ID_PATTERN
from madpo.model_files.companions import MODEL_RECORD
from madpo.model_files.configs import read_config
from madpo.storage.models import ModelStore
from madpo.types import Model
from madpo_gateway.hub import COMMIT_PATTERN, HUB_ID_PATTERN
from madpo_gateway.requests import violation

_NAME_IT = "name a stored model as the base (--base MODEL)"


def base_of_adapter(directory: Path, models: ModelStore) -> str:
    """The id of the model that an adapter's files name as its base: by that id, or by one of the hub's.

    A hub id stands for the model that was imported from there; of several, for that of the commit which peft keeps
    beside it as `revision`.

    Raises:
        InvalidArgumentError: They name none that is stored here, or more than one.
    """
    record = directory / MODEL_RECORD
    config = read_config(directory / "adapter_config.json")
    recorded = read_config(record).get("base_model_id") if record.is_file() else None
    base = recorded or config.get("base_model_name_or_path")
    if isinstance(base, str) and re.fullmatch(MODEL_ID_PATTERN, base):
        return base
    if isinstance(base, str) and re.fullmatch(HUB_ID_PATTERN, base):
        return _imported(base, config.get("revision"), models)
    raise _unclear(base, f"which is no model stored here: upload that one, and {_NAME_IT}")


def _imported(hub_id: str, revision: Any, models: ModelStore) -> str:
    commit = revision if isinstance(revision, str) and re.fullmatch(COMMIT_PATTERN, revision) else None
    found = [model for model in models.imported_from(hub_id) if model.base_model_id is None]
    fitting = [model for model in found if commit in (None, model.metadata.get("commit"))]
    if len(fitting) == 1:
        return fitting[0].model_id
    if fitting:
        raise _unclear(hub_id, f"which may be any of {len(fitting)} stored models: {_NAME_IT}: {_listed(fitting)}")
    at = f" --revision {commit}" if commit else ""
    others = f" (stored at other commits: {_listed(found)})" if found else ""
    raise _unclear(
        hub_id,
        f"and no stored model was imported from there{f' at commit {commit}' if commit else ''}{others}: "
        f"`madpo model import {hub_id}{at}` first, or {_NAME_IT}",
    )


def _listed(models: list[Model]) -> str:
    return ", ".join(f"{model.model_id} (commit {model.metadata.get('commit')})" for model in models)


def _unclear(base: Any, description: str) -> InvalidArgumentError:
    return violation("files.adapter_config.json", f"base_model_name_or_path is {base!r:.120}, {description}")
