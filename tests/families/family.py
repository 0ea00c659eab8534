"""What a family of models is to the tests: a small model of random weights, in the files the real one has on a hub."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from tests.families.tokenizer_files import TokenizerFiles

_BASES = Path(__file__).parent / "bases"


@dataclass(frozen=True, eq=False)
class Family:
    """One family; `make` writes its directory."""

    name: str
    """Of tests, and of the folder in `bases/`: `llama-3`."""
    stands_for: str
    """Real models that are alike."""
    tokenizer: TokenizerFiles
    layout: Literal["packed", "unshared", "padded"] = "packed"
    """How the trainer runs it."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    learns_end_of_turn: int | None = None
    """The token that ends a turn where the base does not know it for an end: what is trained has to tell."""
    scored_by: str | None = None
    """The family of the reward model that its policies are trained with, where it is another one."""
    has_classifier: bool = True
    """Transformers has a sequence classification model of it; else it cannot be made a reward model."""
    has_older_classifier: bool = True
    """Transformers 4.57 has one as well; else nobody can read its reward models there."""

    def __str__(self) -> str:
        return self.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`: as publishers wrote it for transformers 4, with small sizes."""
        config: dict[str, Any] = json.loads((_BASES / self.name / "config.json").read_text())
        return config

    @property
    def dtype(self) -> str:
        """Of the weights: `bfloat16`."""
        return str(self.config["torch_dtype"])

    @property
    def is_encoder(self) -> bool:
        """A reward model from the start, and never a policy."""
        return str(self.config["architectures"][0]).endswith("ForSequenceClassification")

    @property
    def is_chat(self) -> bool:
        """Has a template, and is trained on messages."""
        return self.tokenizer.template is not None

    @property
    def may_change(self) -> set[str]:
        """Files of a policy that need not come back as they were."""
        return set() if self.learns_end_of_turn is None else {"generation_config.json"}

    def make(self, directory: Path) -> Path:
        """Write the model; the same bytes each time."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        shutil.copytree(_BASES / self.name, directory)
        self.tokenizer.write(directory)
        auto = AutoModelForSequenceClassification if self.is_encoder else AutoModelForCausalLM
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.from_pretrained(directory))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
        model.to(getattr(torch, self.dtype)).save_pretrained(directory)
        for name in ("config.json", "generation_config.json"):  # transformers has written its own
            (directory / name).unlink(missing_ok=True)
            if (_BASES / self.name / name).exists():
                shutil.copyfile(_BASES / self.name / name, directory / name)
        return directory
