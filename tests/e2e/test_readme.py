"""The README's code is run as it stands, on the embedded stack."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from madpo_examples.toy_reviews.model import make_base_model

ROOT = Path(__file__).parents[2]
FOUND = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
BLOCKS = {language: "".join(block for each, block in FOUND if each == language) for language in ("bash", "python")}
ADJECTIVES = ["superb", "good", "long", "weak", "awful"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: preferences, held-out pairs and a base model."""
    folder = tmp_path_factory.mktemp("user")
    make_base_model(folder / "my-base-model")
    for name, noun in (("preferences", "plot"), ("held-out", "music")):
        rows = [
            {"prompt": f"a 1980s drama . the {noun}", "chosen": f"is {better} .", "rejected": f"is {worse} ."}
            for index, better in enumerate(ADJECTIVES)
            for worse in ADJECTIVES[index + 1 :]
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def environment(home):
    """What a user's shell has after `pip install`, with a home of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MADPO_")}
    return {**kept, "PATH": path, "MADPO_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(command, *, folder, home):
    done = subprocess.run(command, cwd=folder, env=environment(home), capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_shell_commands_work(folder, tmp_path):
    output = run(["bash", "-euo", "pipefail", "-c", BLOCKS["bash"]], folder=folder, home=tmp_path / "home")

    assert "against my-base-model-evaluation" in output
    assert (folder / "my-aligned-model" / "model.safetensors").exists()


def test_the_python_code_works(folder, tmp_path):
    home = tmp_path / "home"
    code = BLOCKS["python"].replace("my-aligned-model", "my-python-model")
    run(["madpo", "up"], folder=folder, home=home)
    try:
        output = run([sys.executable, "-c", code], folder=folder, home=home)
    finally:
        run(["madpo", "down"], folder=folder, home=home)

    assert 0 <= float(output.split()[-1]) <= 1
    assert (folder / "my-python-model" / "model.safetensors").exists()
    assert (folder / "policy-run" / "ledger.parquet").exists()
