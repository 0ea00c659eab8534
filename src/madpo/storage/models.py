"""Models in the object store, named by their content."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from madpo.errors import CorruptObjectError, InvalidArgumentError, MadpoError, NotFoundError, UnknownFormatError
from madpo.model_files.adapters import check_adapter
from madpo.model_files.companions import is_companion
from madpo.model_files.configs import is_adapter, model_kind
from madpo.model_files.tensors import TensorInfo, parse_header, weights_dtype
from madpo.model_files.uploads import check_files
from madpo.ports import ObjectStore
from madpo.storage import bundle, documents, keys
from madpo.storage.bundle import Manifest
from madpo.storage.files import Transfer, unwatched
from madpo.storage.listing import list_readable, pass_over
from madpo.storage.local_copies import LocalCopies
from madpo.storage.withdrawals import Withdrawal, settle, store_again, withdraw
from madpo.types import Model, StoreFinding

__all__ = ["ModelStore", "model_kind"]


class ModelStore:
    """Publishes models and keeps verified local copies of them."""

    def __init__(self, store: ObjectStore, cache: Path, *, transfer: Transfer = unwatched) -> None:
        """Models are copied to `cache/models/{model_id}`; any number of processes may share the cache.

        Args:
            store: Where models are.
            cache: Of the local copies.
            transfer: Told of what is fetched, verified and published; it may end that by raising.

        Attributes:
            copies: The local copies; those fetched are in use as long as this object is.
        """
        self._store, self._transfer = store, transfer
        self.copies = LocalCopies(cache, transfer=transfer)

    def publish(
        self,
        directory: Path,
        *,
        display_name: str,
        kind: str,
        base_model_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple[Model, bool]:
        """Store a model directory; the same files again give the same model.

        Args:
            directory: A Hugging Face model directory: safetensors, configuration, tokenizer.
            display_name: A label for people.
            kind: `causal_lm` or `reward`; must agree with the configuration.
            base_model_id: For an adapter: the stored model it belongs to.
            metadata: JSON to keep with the model; that of the first publication stays.

        Returns:
            The stored model, and whether it is new.

        Raises:
            InvalidArgumentError: An unsafe or broken file, a configuration of another kind, or an adapter without base.
            NotFoundError: There is no `base_model_id`.
        """
        check_files(directory)
        base_kind = self.get(base_model_id).kind if base_model_id else kind
        found, architecture = model_kind(directory, base_kind=base_kind)
        if found != kind:
            raise InvalidArgumentError(f"the configuration says {found} ({architecture}), expected {kind}")
        self._check_base(directory, base_model_id)
        files = bundle.describe(directory)
        model_id = f"model-{bundle.digest(files, salt=base_model_id or '')}"
        description = {
            "display_name": display_name,
            "kind": kind,
            "architecture": architecture,
            "base_model_id": base_model_id,
            "metadata": dict(metadata or {}),
            "dtype": weights_dtype(directory),
        }
        manifest, created = store_again(
            self._store, keys.model(model_id), directory, metadata=description, transfer=self._transfer
        )
        return _model(model_id, manifest), created

    def get(self, model_id: str) -> Model:
        """Describe a model.

        Raises:
            NotFoundError: There is no such model.
            CorruptObjectError: What describes it was changed.
            UnknownFormatError: A newer version wrote that.
        """
        return _model(model_id, self._manifest(model_id))

    def last_stored(self, model_id: str) -> float:
        """When the same files were stored last, in seconds since the epoch. Raises NotFoundError."""
        return self._manifest(model_id).stored_time

    def list(
        self,
        *,
        page_size: int,
        page_token: str = "",
        on_unreadable: Callable[[StoreFinding], object] = pass_over,
    ) -> tuple[list[Model], str]:
        """A page, the one stored last first; see `list_readable`."""
        return list_readable(
            self._store,
            keys.MODELS,
            self.get,
            page_size=page_size,
            page_token=page_token,
            on_unreadable=on_unreadable,
        )

    def withdraw(self, model_id: str, *, stored_time: float | None) -> Withdrawal:
        """Take a model out of sight, before it is removed or put back.

        Args:
            model_id: Which.
            stored_time: What `last_stored` said when this was decided; None where its manifest was damaged.

        Raises:
            NotFoundError: There is no such model.
            FailedPreconditionError: It was stored again since, or is being removed already.
        """
        return withdraw(self._store, keys.model(model_id), stored_time=stored_time)

    def settle(self, model_id: str) -> None:
        """Wait until it is known whether a model that is out of sight is removed. Raises UnavailableError."""
        settle(self._store, keys.model(model_id))

    def delete(self, model_id: str) -> None:
        """Remove a model whoever needs it. Raises NotFoundError."""
        self.withdraw(model_id, stored_time=self.last_stored(model_id)).remove()

    def adapters_of(self, model_id: str) -> tuple[Sequence[str], Sequence[MadpoError]]:
        """The ids of the stored adapters that belong to a model; and why others cannot be told to be none."""
        adapters, unreadable = [], []
        for other, model in self._all():
            if isinstance(model, MadpoError):
                unreadable += [] if other == model_id else [model]
            elif model.base_model_id == model_id:
                adapters.append(other)
        return adapters, unreadable

    def imported_from(self, hub_id: str) -> Iterator[Model]:
        """The stored models that are of a repository of the hub, one for each commit."""
        for _, model in self._all():
            if isinstance(model, Model) and model.metadata.get("hub_id") == hub_id:
                yield model

    def fetch(self, model_id: str) -> Path:
        """A verified local copy, fetched once per host.

        Raises:
            NotFoundError: There is no such model.
            CorruptObjectError: A stored file does not match its digest; nothing is kept.
        """
        prefix = keys.model(model_id)
        return self.copies.fetch(
            prefix,
            lambda directory: bundle.fetch(self._store, prefix, directory, transfer=self._transfer),
            files=self.get(model_id).files,
        )

    @contextmanager
    def open_file(self, model_id: str, path: str) -> Iterator[BinaryIO]:
        """One file of a model as a stream, not verified on the way. Raises NotFoundError."""
        if all(file.path != path for file in self.get(model_id).files):
            raise NotFoundError(f"{model_id} has no file {path!r}")
        with self._store.open_read(f"{keys.model(model_id)}/{path}") as file:
            yield file

    def tensors(self, model_id: str) -> dict[str, TensorInfo]:
        """Names, dtypes and shapes of a model's tensors, without its weights. Raises NotFoundError."""
        found: dict[str, TensorInfo] = {}
        for entry in self.get(model_id).files:
            if entry.path.endswith(".safetensors"):
                with self.open_file(model_id, entry.path) as file:
                    found |= parse_header(file, size_bytes=entry.size_bytes, name=entry.path)
        return found

    def copy_companions(self, model_id: str, directory: Path) -> None:
        """Give a directory the tokenizer, the template and the generation settings of a stored model."""
        for entry in self.get(model_id).files:
            if is_companion(entry.path):
                bundle.fetch_file(self._store, keys.model(model_id), entry, directory / entry.path)

    def _all(self) -> Iterator[tuple[str, Model | MadpoError]]:
        """Every model by its id, or why it cannot be read."""
        for model_id, _ in bundle.list_bundles(self._store, keys.MODELS):
            try:
                yield model_id, self.get(model_id)
            except NotFoundError:
                pass  # removed meanwhile
            except (CorruptObjectError, UnknownFormatError) as error:
                yield model_id, error

    def _manifest(self, model_id: str) -> Manifest:
        try:
            return bundle.read_manifest(self._store, keys.model(model_id))
        except NotFoundError as error:
            raise NotFoundError(f"no model {model_id}") from error

    def _check_base(self, directory: Path, base_model_id: str | None) -> None:
        if is_adapter(directory) != (base_model_id is not None):
            raise InvalidArgumentError(
                "an adapter needs base_model_id, the stored model it belongs to; others have none"
            )
        if base_model_id is None:
            return
        if deeper := self.get(base_model_id).base_model_id:
            raise InvalidArgumentError(f"{base_model_id} is an adapter of {deeper} itself: merge it before going on")
        check_adapter(directory, self.tensors(base_model_id))


def _model(model_id: str, manifest: Manifest) -> Model:
    description = manifest.metadata
    with documents.reading(f"{keys.model(model_id)}/{keys.MANIFEST}"):
        return Model(
            model_id=model_id,
            display_name=description["display_name"],
            kind=description["kind"],
            architecture=description["architecture"],
            size_bytes=manifest.size_bytes,
            create_time=manifest.create_time,
            files=manifest.files,
            base_model_id=description["base_model_id"],
            metadata=description["metadata"],
            dtype=description.get("dtype", ""),  # models of earlier versions do not say
        )
