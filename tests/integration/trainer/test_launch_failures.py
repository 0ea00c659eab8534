"""Ranks that fail under a real torchrun: the first one is named, and no banner stands in for its error."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from madpo.worker.failure import Failure, first_failure
from madpo.worker.workspace import hold_lifeline

LAUNCH = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    from madpo.worker import program
    from madpo_trainer import launch, torchrun

    torchrun.program = SimpleNamespace(command=lambda _, workspace: program.command("doomed", workspace))
    sys.exit(launch.main(Path(sys.argv[1])))
"""
DOOMED = """
    import os, signal, time

    import torch.distributed as dist

    def main(workspace):
        dist.init_process_group("gloo")
        if os.environ["RANK"] == "1":
            {what}
        dist.barrier()
        time.sleep(60)
"""


def launched(directory: Path, what: str) -> tuple[Failure | None, str]:
    """Launch two ranks of which the second does `what`; what ended the run, and what it said."""
    workspace = directory / "workspace"
    workspace.mkdir()
    (directory / "doomed.py").write_text(textwrap.dedent(DOOMED).replace("{what}", what))
    settings = {"STORE_URL": "file:///none", "REDIS_URL": "redis://127.0.0.1:1/0", "WORKSPACE": str(workspace)}
    environment = os.environ | {f"MADPO_TRAINER_{name}": value for name, value in settings.items()}
    environment |= {"PYTHONPATH": str(directory), "MADPO_TRAINER_NPROC_PER_NODE": "2"}
    with hold_lifeline(workspace):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(LAUNCH), str(workspace)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert done.returncode == 1
    return first_failure(workspace), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("raise KeyError('chosen')", "KeyError: 'chosen' (in doomed:main)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 was killed by SIGKILL"),
        ("os._exit(7)", "rank 1 exited with code 7 before it had finished"),
    ],
)
def test_the_rank_that_failed_first_says_why(tmp_path: Path, what: str, line: str) -> None:
    failure, said = launched(tmp_path, what)

    assert failure is not None
    assert failure.line == line
    assert "Root Cause" not in said
    assert "elastic/errors.html" not in said


def test_a_launcher_that_somebody_ends_says_so(tmp_path: Path) -> None:
    failure, said = launched(tmp_path, "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")

    assert failure is not None
    assert (failure.line, failure.from_outside) == ("the run was killed by SIGTERM", True)
    assert "elastic/errors.html" not in said
