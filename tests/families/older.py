"""The last transformers 4, beside ours: `python -m tests.families.older` installs it, `OlderTransformers` asks it.

Only what differs is installed, into a folder that a process of its own has in front of our packages.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("transformers-4.txt")
PACKAGES = ROOT / "out" / "transformers-4"


def install() -> Path:
    """The folder with the packages; installs them where they are missing or others than asked for."""
    PACKAGES.parent.mkdir(exist_ok=True)
    installed = PACKAGES / "installed.txt"
    with (PACKAGES.parent / "transformers-4.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.exists() or installed.read_bytes() != REQUIREMENTS.read_bytes():
            shutil.rmtree(PACKAGES, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--target", PACKAGES, "-r", REQUIREMENTS], check=True)
            shutil.copyfile(REQUIREMENTS, installed)
    return PACKAGES


class OlderTransformers:
    """A process that answers as `plain` does, under transformers 4. Use as a context."""

    def __enter__(self) -> Self:
        packages = install()
        self._log = tempfile.TemporaryFile("w+")
        replies, its_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("plain.py"), str(its_end)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            env=os.environ | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            pass_fds=[its_end],
        )
        os.close(its_end)
        self._replies = os.fdopen(replies)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._replies.close()
        self._log.close()

    def __call__(self, call: str, *arguments: Any, **options: Any) -> Any:
        """The value of `plain.<call>` there. Raises AssertionError with what went wrong."""
        assert self._process.stdin is not None
        request = {"call": call, "arguments": arguments, "options": options}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._replies.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(self._log.read()[-2000:])
        reply = json.loads(line)
        assert "error" not in reply, f"transformers 4: {reply['error']}"
        return reply["value"]


if __name__ == "__main__":
    install()
