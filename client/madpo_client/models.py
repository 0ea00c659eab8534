"""Models and checkpoints of a gateway."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from madpo.jobs.base import ModelReference, validate
from madpo.jobs.registry import KINDS
from madpo.model_files.uploads import files_to_upload
from madpo.types import Checkpoint, Model, StoreFinding
from madpo_client.deprecation import renamed
from madpo_client.hub import say_commit
from madpo_client.job import JobHandle
from madpo_client.lookup import References, say_kept_name, say_unreadable
from madpo_client.merged import MergedDtype, download_merged
from madpo_client.progress import transfer
from madpo_client.references import ModelLike
from madpo_client.session import Session
from madpo_client.sources import size_bytes_of

_TRAININGS = frozenset(kind.name for kind in KINDS.values() if kind.is_training)


class Models:
    """Models and checkpoints of a gateway."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._references = References(session)

    def upload(
        self,
        directory: Path | str,
        *,
        base: Model | str | None = None,
        name: str | None = None,
        progress: bool = False,
    ) -> Model:
        """Upload a Hugging Face model directory, or a LoRA adapter of peft's; the same content twice is one model.

        Files that are no part of a model stay behind, such as LICENSE, `training_args.bin` or code.

        Args:
            directory: Safetensors, tokenizer and configuration. An adapter may come without a tokenizer, its base's
                is taken then.
            base: For an adapter: the model it was trained on. Without one its files must name it, by the id here or by
                that on the hub from which it was imported.
            name: A label for people; by default the directory's name. Content that is stored already keeps its name,
                which is logged.
            progress: Count the bytes on a terminal.

        Raises:
            InvalidArgumentError: Not a model directory, or its weights are broken or of another form; names them before
                any is sent. Or the adapter does not fit its base.
        """
        directory = Path(directory)
        files = files_to_upload(directory)
        base_model_id = "" if base is None else self._references.model_id(base)
        total_bytes = sum(size_bytes_of(directory / path) for path in files.taken)
        with transfer(f"Uploading {directory.name}", total_bytes, shown=progress) as view:
            label = directory.absolute().name if name is None else name
            upload = self._session.gateway.upload_model(
                directory, display_name=label, base_model_id=base_model_id, on_bytes=view.on_bytes
            )
            model, _ = self._session.run(upload)
        say_kept_name(model, label)
        return model

    def import_from_hub(
        self,
        hub_id: str,
        *,
        revision: str | None = None,
        base: Model | str | None = None,
        commit: str | None = None,
    ) -> Model:
        """Let the gateway fetch a model from the hub, or a LoRA adapter of peft's.

        Args:
            hub_id: `owner/name`.
            revision: A branch, a tag or a commit; without one `main`. The full commit that it is now is logged, and
                kept in the model's metadata.
            base: For an adapter: the model it was trained on, as for `upload`.
            commit: The old name of `revision`.

        Raises:
            InvalidArgumentError: It is no model that can be used, or an adapter of no model stored here.
            NotFoundError: The hub has no such model or revision.
            FailedPreconditionError: The gateway has no access to the hub.
        """
        revision = renamed("commit", commit, "revision", revision) or "main"
        base_model_id = "" if base is None else self._references.model_id(base)
        fetch = self._session.gateway.import_model(hub_id, revision=revision, base_model_id=base_model_id)
        model, _, found = self._session.run(fetch)
        say_commit(hub_id, revision, found)
        return model

    def get(self, model_id: str) -> Model:
        """A model by its id, or what stands for one. Raises NotFoundError."""
        return self._session.run(self._session.gateway.get_model(self._references.model_id(model_id)))

    def delete(self, model: Model | str) -> str:
        """Delete a model, also one that is damaged; gives its id. Checkpoints of jobs are no models of their own.

        Raises:
            NotFoundError: There is no such model.
            FailedPreconditionError: A job that is not over, or an adapter, needs it; names it.
        """
        model_id = self._references.model_id(model)
        self._session.run(self._session.gateway.delete_model(model_id))
        return model_id

    def checkpoints(self, job: JobHandle | str) -> list[Checkpoint]:
        """Checkpoints of a training job, newest first."""
        return self._session.run(self._session.gateway.list_checkpoints(self._references.job_id(job, kinds=_TRAININGS)))

    def download(
        self,
        model: ModelLike,
        directory: Path | str,
        *,
        step: int | None = None,
        weights: bool = True,
        merged: bool = False,
        merged_dtype: MergedDtype = "exact",
        progress: bool = False,
    ) -> Path:
        """Download a model, a job's final model or its checkpoint of `step`; whole and verified, or not at all.

        Args:
            model: What to download.
            directory: Must not exist, or be empty.
            step: With a job: that checkpoint.
            weights: False leaves them out: the tokenizer and the configuration alone.
            merged: Make of an adapter the whole model that it is with its base. That runs here, and needs torch. The
                base is taken as it is stored, also where the adapter was trained on it in four bits (`quantize_base`).
            merged_dtype: `exact` keeps in float32 what would not be exact in the base's dtype; `base` rounds it.
            progress: Count the bytes on a terminal.

        Raises:
            InvalidArgumentError: `step` was given without a job.
            NotFoundError: No such model, job or checkpoint.
            FailedPreconditionError: The job has not succeeded, or the directory is taken.
            CorruptObjectError: A file arrived damaged; names it.
        """
        reference = self._references.model(model)
        if step is not None:
            reference = validate(ModelReference, {"job_id": reference.job_id, "step": step}, path="model")
        if not merged:
            return self._download(reference, Path(directory), weights=weights, progress=progress)

        def download_base(base_model_id: str | None, into: Path) -> None:
            found = base_model_id or (self.get(reference.model_id).base_model_id if reference.model_id else None)
            self._download(ModelReference(model_id=found), into, weights=True, progress=progress)

        return download_merged(
            Path(directory),
            download=lambda into: self._download(reference, into, weights=True, progress=progress),
            download_base=download_base,
            dtype=merged_dtype,
        )

    def _download(self, reference: ModelReference, directory: Path, *, weights: bool, progress: bool) -> Path:
        with transfer("Downloading", None, shown=progress) as view:
            download = self._session.gateway.download_model(
                directory,
                model_id=reference.model_id,
                job_id=reference.job_id,
                step=reference.step,
                weights=weights,
                on_bytes=view.on_bytes,
            )
            return self._session.run(download)

    def list(self, *, on_unreadable: Callable[[StoreFinding], object] = say_unreadable) -> list[Model]:
        """All models, the one stored last first.

        Args:
            on_unreadable: Told of each that cannot be read and is left out; by default a warning is logged.
        """
        return list(self._session.each(partial(self._session.gateway.list_models, on_unreadable=on_unreadable)))
