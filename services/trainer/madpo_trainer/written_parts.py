"""Tensors as files, part by part: who writes a part holds no more of a sharded model than that.

Parts depend on the tensors alone, so the same ones leave the same files on any number of ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

from madpo.models.dtypes import WeightDtypes
from madpo.models.save import CONFIG, PART_BYTES, WeightsFile, in_parts, save_weights, weight_parts
from madpo_trainer.ranks import Ranks
from madpo_trainer.sharding import gathered

V = TypeVar("V")


def write_weights(
    model: nn.Module, directory: Path, ranks: Ranks, *, dtypes: WeightDtypes | None = None, is_dealt: bool
) -> list[WeightsFile]:
    """Write a model's weights; all ranks must call.

    Args:
        model: May be sharded.
        directory: Of this rank, where to.
        ranks: All of them.
        dtypes: Of the files.
        is_dealt: Ranks take turns with the files, else the leader writes all.

    Returns:
        The files, whoever wrote them.
    """
    state = model.state_dict(keep_vars=True)
    parts = weight_parts(model, state, dtypes=dtypes, most_bytes=PART_BYTES)

    def save(tensors: Mapping[str, Tensor], number: int) -> WeightsFile:
        directory.mkdir(parents=True, exist_ok=True)
        written = save_weights(model, directory, state=tensors, dtypes=dtypes, part=(number, len(parts)))
        if not ranks.is_leader:
            (directory / CONFIG).unlink()
        return written

    return _write(state, parts, ranks, save, is_dealt=is_dealt)


def write_tensors(name: str, tensors: Mapping[str, Tensor], directory: Path, ranks: Ranks) -> None:
    """Write tensors as `{name}.safetensors`, or several files of that name and a number; all ranks must call.

    Args:
        name: Of the files.
        tensors: May be sharded. Nothing is written of none.
        directory: Of this rank; ranks take turns with the files.
        ranks: All of them.
    """
    parts = in_parts(tensors, {key: tensor.nbytes for key, tensor in tensors.items()}, most_bytes=PART_BYTES)

    def save(part: Mapping[str, Tensor], number: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        number_of = "" if len(parts) == 1 else f"-{number + 1:05d}-of-{len(parts):05d}"
        whole = {key: tensor.cpu().contiguous() for key, tensor in part.items()}
        save_file(whole, directory / f"{name}{number_of}.safetensors")

    if tensors:
        _write(tensors, parts, ranks, save, is_dealt=True)


def _write(
    tensors: Mapping[str, Tensor],
    parts: Sequence[Sequence[str]],
    ranks: Ranks,
    save: Callable[[dict[str, Tensor], int], V],
    *,
    is_dealt: bool,
) -> list[V]:
    """What `save` gave for each part; a rank writes one while all gather the next."""
    mine: list[Future[V]] = []
    with ThreadPoolExecutor(1, "parts") as pool:
        for number, names in enumerate(parts):
            is_mine = ranks.rank == (number % ranks.size if is_dealt else 0)
            if is_mine:
                wait(mine)  # no more than one is in memory
            part = dict(gathered(((name, tensors[name]) for name in names), keep=is_mine))
            if is_mine:
                mine.append(pool.submit(save, part, number))
    # Here, not before: the others wait for this rank in each part.
    written = ranks.gather(ranks.together(lambda: [each.result() for each in mine]))
    turns = [(number % ranks.size, number // ranks.size) if is_dealt else (0, number) for number in range(len(parts))]
    return [written[rank][turn] for rank, turn in turns]
