"""Whether a model's weights are all there, as transformers looks for them: one file, or an index with its shards."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from madpo.errors import InvalidArgumentError
from madpo.model_files.configs import is_adapter, read_config
from madpo.model_files.tensors import read_header
from madpo.spelling import number_of

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SAVED = "copy the whole directory, as save_pretrained wrote it"


def weights_faults(directory: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is missing from the weights of a whole model: file and fault, nothing where all is there.

    Args:
        directory: Of a model; of an adapter `check_adapter` says whether its weights are whole.
        names: Its files that count, as paths in it.
    """
    if is_adapter(directory) or _WEIGHTS in names:
        return
    if _INDEX not in names:
        found = next(name for name in names if name.endswith(".safetensors"))
        yield _WEIGHTS, f"is not there, nor {_INDEX}, which says what is in {found}: {_SAVED}"
        return
    try:
        shards = _shards(directory / _INDEX)
    except InvalidArgumentError as error:
        yield _INDEX, str(error)
        return
    for name, tensors in sorted(shards.items()):
        if name not in names:
            yield name, f"is named in {_INDEX} and not there: {_SAVED}"
        elif absent := sorted(tensors - read_header(directory / name).keys()):
            yield name, f"lacks {number_of(len(absent), 'weight')} that {_INDEX} places in it ({absent[0]}): {_SAVED}"


def weights_files(names: Iterable[str]) -> list[str]:
    """Those of a whole model's files whose weights are read: the one file, even where there are shards beside it."""
    weights = [name for name in names if name.endswith(".safetensors")]
    return [_WEIGHTS] if _WEIGHTS in weights else weights


def _shards(index: Path) -> dict[str, set[str]]:
    """Names of the weights in each shard that an index names."""
    placed = read_config(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise InvalidArgumentError("weight_map must say in which file each weight is")
    shards: dict[str, set[str]] = {}
    for tensor, shard in placed.items():
        shards.setdefault(shard, set()).add(tensor)
    return shards
