"""What an attempt takes to start: counted in processes and modules, which are the same on any machine."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from madpo.ports import Claim
from madpo.types import Job, JobKind, JobState
from madpo.worker import crash, program
from madpo.worker.failure import first_failure
from madpo.worker.workspace import Workspace
from tests.integration.trainer.training_site import Site, job_id

NOTING = """
    import os, sys

    class Noting:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                with open(os.environ["NOTES"], "a") as file:
                    print(os.getpid(), file=file)

    sys.meta_path.insert(0, Noting())
"""
"""A `sitecustomize` that notes which processes import torch."""

DOOMED = """
    import os, signal, sys, types

    def main(workspace, place=None):
        print("begun")
        {what}

    sys.modules["madpo_trainer.run"] = types.SimpleNamespace(main=main)
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    settings = {
        "STORE_URL": f"file://{home / 'store'}",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "WORKSPACE": str(home / "work"),
        "NPROC_PER_NODE": "1",
        "THREADS": "1",
    }
    return os.environ | {f"MADPO_TRAINER_{name}": value for name, value in settings.items()} | more


def attempt(home: Path, site: Site) -> Workspace:
    spec = {"model": site.model, "dataset": site.pairs, "method": {"name": "dpo"}, "training": {"max_steps": 1}}
    job = Job(job_id(home.name), JobKind.POLICY_TRAINING, JobState.RUNNING, spec, attempt=1)
    return Workspace(home / "workspace", Claim(job, attempt=1, worker_id="test"))


def test_one_process_imports_torch_for_a_training_of_one_rank(tmp_path: Path, site: Site) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(NOTING))
    workspace = attempt(tmp_path, site)
    noting = {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path / "notes")}

    done = subprocess.run(
        program.command("madpo_trainer.launch", workspace.directory),
        env=environment(site.home, **noting),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    outcome = workspace.outcome()
    assert outcome is not None, done.stderr
    assert (done.returncode, outcome.kind) == (0, "succeeded"), outcome.reason
    assert len(set((tmp_path / "notes").read_text().split())) == 1


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("raise KeyError('chosen')", "KeyError: 'chosen' (in madpo_trainer.launch:main)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the run was killed by SIGKILL from outside: memory had not run out"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "the run was killed by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the run was killed by SIGSEGV"),
        ("os._exit(7)", "the run exited with code 7 before it had finished"),
    ],
)
def test_a_single_rank_that_fails_says_why(tmp_path: Path, site: Site, what: str, line: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(DOOMED).replace("{what}", what))
    workspace = attempt(tmp_path, site)

    code = subprocess.run(
        program.command("madpo_trainer.launch", workspace.directory),
        env=environment(site.home, PYTHONPATH=str(tmp_path)),
        timeout=180,
        check=False,
    ).returncode

    failure = crash.describe(first_failure(workspace.directory), code, memory_ran_out=False)
    assert failure.line == line
    assert failure.from_outside == any(name in what for name in ("SIGKILL", "SIGTERM"))


def test_supervisors_start_without_what_only_runs_need() -> None:
    heavy = ("torch", "transformers", "peft", "pyarrow", "matplotlib", "numpy")
    for service in ("trainer", "evaluator"):
        code = f"import sys, madpo_{service}.service; print([name for name in {heavy} if name in sys.modules])"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert said.stdout == "[]\n", service
