"""What a recipe names: uploaded or looked up."""

from collections.abc import Sequence
from pathlib import Path

from madpo.errors import InvalidArgumentError, NotFoundError
from madpo.jobs.base import DatasetReference, ModelReference
from madpo_client.align.chain import Chain, Found, make_chain
from madpo_client.align.recipe import Recipe
from madpo_client.client import Client
from madpo_client.references import dataset_reference

_UNKNOWN = "0" * 32


def planned(recipe: Recipe) -> Chain:
    """The jobs of a recipe over data that nobody has looked at: what they are, without the ids they would have.

    Raises:
        InvalidArgumentError: Something in it is wrong; names it.
    """
    model, dataset = ModelReference(model_id=f"model-{_UNKNOWN}"), DatasetReference(dataset_id=f"dataset-{_UNKNOWN}")
    found = Found(
        base=model,
        pairs=dataset,
        held_out=dataset if recipe.data.held_out else None,
        prompts=dataset,
        fresh_prompts=dataset,
        completions=dataset if recipe.data.completions else None,
        reward_model=model if recipe.reward_model.use else None,
    )
    return make_chain(recipe, found)


def find(client: Client, recipe: Recipe, *, directory: Path, progress: bool = False) -> Found:
    """Upload the files and directories of a recipe, and look up the rest.

    Args:
        client: Connected.
        recipe: What is wanted.
        directory: Paths in the recipe start there.
        progress: Count bytes on a terminal.

    Raises:
        InvalidArgumentError: A file is not there or holds wrong rows, or nothing is stood for; names the field.
    """

    def dataset(field: str, given: str | Sequence[str]) -> DatasetReference:
        try:
            paths = _paths([given] if isinstance(given, str) else given, directory)
            if paths:
                return dataset_reference(
                    client.datasets.upload(paths if len(paths) > 1 else paths[0], progress=progress)
                )
            stored = given if isinstance(given, str) else given[0]
            if stored.startswith("hub:"):
                return dataset_reference(client.datasets.upload(stored, progress=progress))
            return dataset_reference(client.datasets.get(stored))
        except (NotFoundError, InvalidArgumentError) as error:
            raise InvalidArgumentError.in_field(field, str(error)) from error

    def model(field: str, given: str) -> ModelReference:
        try:
            if paths := _paths([given], directory):
                return ModelReference(model_id=client.models.upload(paths[0], progress=progress).model_id)
            return ModelReference(model_id=client.models.get(given).model_id)
        except (NotFoundError, InvalidArgumentError) as error:
            raise InvalidArgumentError.in_field(field, str(error)) from error

    data = recipe.data
    pairs = dataset("data.pairs", data.pairs)
    held_out = None if data.held_out is None else dataset("data.held_out", data.held_out)
    return Found(
        base=model("base", recipe.base),
        pairs=pairs,
        held_out=held_out,
        prompts=(held_out or pairs) if data.prompts is None else dataset("data.prompts", data.prompts),
        fresh_prompts=pairs if recipe.fresh.prompts is None else dataset("fresh.prompts", recipe.fresh.prompts),
        completions=None if data.completions is None else dataset("data.completions", data.completions),
        reward_model=None if recipe.reward_model.use is None else model("reward_model.use", recipe.reward_model.use),
    )


def _paths(given: Sequence[str], directory: Path) -> list[Path]:
    """The files or directories that are meant; none where the text stands for something stored.

    Raises:
        InvalidArgumentError: Text that looks like a path leads nowhere.
    """
    paths = [directory / Path(text).expanduser() for text in given]
    there = [path.exists() for path in paths]
    if not given:
        raise InvalidArgumentError("it names no file")
    if all(there):
        return paths
    missing = next(text for text, is_there in zip(given, there, strict=True) if not is_there)
    if len(given) > 1 or missing.startswith((".", "/", "~")) or Path(missing).suffix in _SUFFIXES:
        raise InvalidArgumentError(f"there is no file {missing} in {directory}")
    return []


_SUFFIXES = {".jsonl", ".json", ".parquet", ".arrow", ".csv", ".gz", ".zst"}
