"""Whether a model's head is its embeddings, where its configuration says so."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from madpo.model_files.tensors import read_header, read_spans
from madpo.model_files.weights_needed import EMBEDDINGS, HEAD, is_tied

_BLOCKS, _BLOCK_BYTES = 64, 4096
"""What is compared of two weights: so many pieces of so many bytes, from all over them."""


def head_warnings(directory: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """A head that the configuration ties to the embeddings, and whose numbers in the files are others."""
    if not is_tied(config):
        return
    head, embeddings = (_find(directory, pattern) for pattern in (HEAD, EMBEDDINGS))
    if head is not None and embeddings is not None and _differ(head, embeddings):
        yield (
            f"config.json ties the head to the embeddings, and {head[1]} in the files has other numbers: madpo and "
            "transformers 5 compute with it, transformers 4 with the embeddings, to which an adapter trained here will "
            'not fit; write "tie_word_embeddings": false where the head is meant'
        )


def _find(directory: Path, pattern: Any) -> tuple[Path, str] | None:
    """The file of the one weight that is called so, and its name; None where there are none or several."""
    found = [
        (path, name)
        for path in sorted(directory.rglob("*.safetensors"))
        for name in read_header(path)
        if pattern.search(name)
    ]
    return found[0] if len(found) == 1 else None


def _differ(first: tuple[Path, str], second: tuple[Path, str]) -> bool:
    tensors = [read_header(path)[name] for path, name in (first, second)]
    if tensors[0] != tensors[1]:
        return tensors[0].dtype == tensors[1].dtype
    (path, begin, end), (other, other_begin, _) = ((path, *read_spans(path)[name]) for path, name in (first, second))
    step = max(_BLOCK_BYTES, (end - begin) // _BLOCKS)
    with path.open("rb") as one, other.open("rb") as two:
        for offset in range(0, end - begin, step):
            one.seek(begin + offset)
            two.seek(other_begin + offset)
            size = min(_BLOCK_BYTES, end - begin - offset)
            if one.read(size) != two.read(size):
                return True
    return False
