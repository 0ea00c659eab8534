"""What the object store holds: datasets, models, checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from madpo.types.rows import DatasetKind


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: relative path, size and SHA-256 (hex)."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetForm:
    """A form that rows of an upload had."""

    name: str
    rows: int
    """Of the file; a ranked list may have become several pairs."""
    columns: Mapping[str, str]
    """Our names, and where each was read from."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset in the object store, named by its content."""

    dataset_id: str
    display_name: str
    kind: DatasetKind
    rows: int
    size_bytes: int
    create_time: float
    columns: tuple[str, ...] = ()
    """Optional fields of `PreferencePair` that every row has, such as `reward_margin`."""
    forms: tuple[DatasetForm, ...] = ()
    """What an upload found: in its reply that upload, else the one that made the dataset."""

    @property
    def has_margins(self) -> bool:
        """Whether every row has a reward margin."""
        return "reward_margin" in self.columns


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory in the object store, named by its content."""

    model_id: str
    display_name: str
    kind: str
    """`causal_lm` or `reward`."""
    architecture: str
    size_bytes: int
    create_time: float
    files: tuple[FileEntry, ...]
    base_model_id: str | None = None
    """For an adapter: the model it belongs to."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    """Of the weights, as safetensors calls it: `BF16`, `F32`; of several the one that most bytes have."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Something that retention has removed, or would."""

    kind: str
    """`job`, `checkpoint`, `model`, `dataset`, `tokens`, `reference_logps`, `unfinished` or `audit`."""
    thing_id: str
    size_bytes: int
    age_s: float
    """Since the end of a job, the making of anything else."""
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class StoreFinding:
    """Something wrong in the object store."""

    key: str
    """Of the object, or the prefix of what has no manifest."""
    verdict: str
    """`damaged` or `missing`; `newer`, written by a newer version; `unverified`, stored by 0.1.0 without a digest;
    `unfinished`, being written or given up."""
    detail: str
    repaired: bool = False
    """It was removed, to be made again; or a removal was ended whose note was damaged."""

    @property
    def is_loss(self) -> bool:
        """Whether bytes are not what they were, and nobody has seen to it."""
        return self.verdict in ("damaged", "missing") and not self.repaired


@dataclass(frozen=True, slots=True)
class StoreCheckProgress:
    """How much of the object store was read."""

    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint of a job: it has a manifest."""

    job_id: str
    step: int
    attempt: int
    create_time: float
    size_bytes: int
