"""`scripts/check_proto.sh` lets no change through that breaks users of the contract."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTO = "proto/madpo/v1/reward_service.proto"


@pytest.fixture
def checkout(tmp_path):
    """A repository of the contract alone, with one commit."""
    for name in ("proto", "scripts", "src/madpo/v1"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path)
    return tmp_path


def environment():
    # Git tells its hooks where the repository is: here it is another.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return outer | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON": sys.executable}


def git(checkout, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=checkout, check=True, env=environment(), timeout=60)


def commit(checkout):
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "Change the contract")


def change(checkout, line, replacement=""):
    path = checkout / PROTO
    text = path.read_text()
    assert text.count(line) == 1
    path.write_text(text.replace(line, replacement))
    subprocess.run([checkout / "scripts" / "gen_proto.sh"], check=True, env=environment(), timeout=60)


def check(checkout):
    return subprocess.run(
        [checkout / "scripts" / "check_proto.sh"], capture_output=True, text=True, env=environment(), timeout=60
    )


def test_a_clone_of_one_commit_passes_and_says_that_nothing_was_compared(checkout):
    done = check(checkout)

    assert done.returncode == 0, done.stderr
    assert "compared with nothing" in done.stdout


def test_a_new_field_passes(checkout):
    change(checkout, "  string activation = 7;\n", "  string activation = 7;\n  string licence = 9;\n")
    commit(checkout)

    done = check(checkout)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared with nothing" not in done.stdout


def test_a_removed_field_is_refused_on_main_and_on_a_branch(checkout):
    git(checkout, "checkout", "--quiet", "-b", "smaller")
    change(checkout, "  string activation = 7;\n")
    commit(checkout)
    change(checkout, "  string dtype = 6;\n", "  string dtype = 6;\n  string licence = 9;\n")
    commit(checkout)
    on_branch = check(checkout)
    git(checkout, "checkout", "--quiet", "main")
    git(checkout, "merge", "--quiet", "--no-ff", "--message", "Merge", "smaller")

    for done in (on_branch, check(checkout)):
        assert done.returncode != 0
        assert 'field "7" with name "activation"' in done.stdout
        assert "breaks users" in done.stderr


def test_after_a_release_it_alone_counts(checkout):
    git(checkout, "tag", "v1.0.0")
    change(checkout, "  string activation = 7;\n", "  string activation = 7;\n  string licence = 9;\n")
    commit(checkout)
    change(checkout, "  string licence = 9;\n")
    commit(checkout)
    taken_back = check(checkout)
    change(checkout, "  rpc ScoreResponses(ScoreResponsesRequest) returns (ScoreResponsesResponse);\n")
    commit(checkout)
    without_rpc = check(checkout)

    assert taken_back.returncode == 0, taken_back.stdout + taken_back.stderr
    assert without_rpc.returncode != 0
    assert "users of the contract of v1.0.0" in without_rpc.stderr
