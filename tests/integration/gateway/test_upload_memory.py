"""What a large upload takes: the check that measures it, on a file small enough to run each time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "upload_memory_check.py"


@pytest.mark.data
@pytest.mark.slow
def test_an_upload_takes_less_memory_than_it_has_bytes() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--mib", "192"], capture_output=True, text=True)

    figures = json.loads(done.stdout)
    assert done.returncode == 0, figures
    assert figures["gateway_mib"] < 0.9 * figures["file_mib"]
    assert figures["client_mib"] < 50
