"""The README's code is run as it stands, on the embedded stack."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from madpo_examples.toy_reviews.model import make_base_model
from tests.families.catalogue import BY_NAME

ROOT = Path(__file__).parents[2]
FOUND = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
BLOCKS = {language: "".join(block for each, block in FOUND if each == language) for language in ("bash", "python")}
ADJECTIVES = ["superb", "good", "long", "weak", "awful"]


def write_texts(folder):
    """A few short pairs of text, and a base in float32 without a chat template."""
    make_base_model(folder / "my-base-model")
    for name, noun in (("preferences", "plot"), ("held-out", "music")):
        rows = [
            {"prompt": f"a 1980s drama . the {noun}", "chosen": f"is {better} .", "rejected": f"is {worse} ."}
            for index, better in enumerate(ADJECTIVES)
            for worse in ADJECTIVES[index + 1 :]
        ]
        write_rows(folder / f"{name}.jsonl", rows)


def write_chats(folder):
    """Some hundred conversations, a few of them longer than the base reads, which is in bf16 and has a template."""
    BY_NAME["qwen-2.5"].make(folder / "my-base-model")
    for name, count in (("preferences", 300), ("held-out", 20)):
        rows = []
        for index in range(count):
            said = f"What is {index}? " + "The sea is wide. " * (200 if index % 10 == 9 else index % 5)
            rows.append(
                {
                    "chosen": [{"role": "user", "content": said}, {"role": "assistant", "content": f"It is {index}."}],
                    "rejected": [{"role": "user", "content": said}, {"role": "assistant", "content": "Salt water."}],
                }
            )
        write_rows(folder / f"{name}.jsonl", rows)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def environment(home):
    """What a user's shell has after `pip install`, with a home of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    return {**kept, "PATH": path, "MADPO_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(command, *, folder, home):
    done = subprocess.run(command, cwd=folder, env=environment(home), capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("write", [write_texts, write_chats], ids=["texts", "chats"])
def test_the_shell_commands_work(write, tmp_path):
    write(tmp_path)

    output = run(["bash", "-euo", "pipefail", "-c", BLOCKS["bash"]], folder=tmp_path, home=tmp_path / "home")

    assert "against my-base-model-evaluation" in output
    assert (tmp_path / "my-aligned-model" / "model.safetensors").exists()


def test_the_python_code_works(tmp_path):
    write_texts(tmp_path)
    home = tmp_path / "home"
    run(["madpo", "up"], folder=tmp_path, home=home)
    try:
        output = run([sys.executable, "-c", BLOCKS["python"]], folder=tmp_path, home=home)
    finally:
        run(["madpo", "down"], folder=tmp_path, home=home)

    assert 0 <= float(output.split()[-1]) <= 1
    assert (tmp_path / "my-aligned-model" / "model.safetensors").exists()
    assert (tmp_path / "policy-run" / "ledger.parquet").exists()
