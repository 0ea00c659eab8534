"""The table of what trainings take of memory: `python -m tests.memory_table` writes it into docs/gpu.md."""

import warnings
from pathlib import Path

from madpo_trainer.plan import HEADINGS, arguments_of, config_of, rows, ways

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
_BEGIN, _END = "<!-- memory: written by `make docs` -->\n", "<!-- end of memory -->"
_ASKED = (
    ("8B", "--model-shape llama-8b"),
    ("8B", "--model-shape llama-8b --gpus 8"),
    ("8B", "--model-shape llama-8b --quantize-base nf4"),
    ("8B", "--model-shape llama-8b --gpus 8 --quantize-base nf4"),
    ("70B", "--model-shape llama-70b --gpus 1 --lora 16"),
    ("70B", "--model-shape llama-70b --quantize-base nf4"),
    ("70B", "--model-shape llama-70b --gpus 8"),
    ("70B", "--model-shape llama-70b --gpus 8 --quantize-base nf4"),
)


def memory_table() -> str:
    """What is asked for most, in Markdown."""
    lines = ["| model | " + " | ".join(HEADINGS) + " |", "|---" * 2 + "|--:" * (len(HEADINGS) - 1) + "|"]
    for size, asked in _ASKED:
        arguments = arguments_of(asked.split())
        found = rows(config_of(arguments), ways(arguments), gpus=arguments.gpus)
        lines += ["| " + " | ".join([size, *row.cells()]) + " |" for row in found]
    return "\n".join(lines) + "\n"


def page_with(table: str) -> str:
    """The page with this table in the place of the one it has."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table}{_END}{after}"


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    PAGE.write_text(page_with(memory_table()))
