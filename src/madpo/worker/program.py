"""`python -m madpo.worker.program MODULE [WORKSPACE]`: runs `MODULE.main(WORKSPACE)` as a process of an attempt.

The module is imported here, not by the interpreter, so that an import that fails is told like any other failure. What
else can be done before there is a job is in its `prepare`, where it has one.

Without a workspace the process is a spare one (`madpo.worker.spare`): it imports and prepares ahead, and waits until it
is told one. It leaves a copy of itself first where the module's `may_be_copied` says that this may be.
"""

import contextlib
import faulthandler
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

from madpo.imports import lasting
from madpo.worker import waiting
from madpo.worker.failure import telling

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_FIRST_TO_GO = "1000"


def command(module: str, workspace: Path | None = None) -> list[str]:
    """What starts such a process."""
    return [sys.executable, "-m", "madpo.worker.program", module, *([str(workspace)] if workspace else [])]


def main(module: str, workspace: Path | None = None) -> int:
    """The exit code of the module's `main`; what it raises is left in the workspace."""
    faulthandler.enable()
    if workspace is None and (workspace := _await_workspace(module)) is None:
        return 0
    with telling(workspace):
        return _load(module).main(workspace) or 0


def _load(module: str) -> ModuleType:
    with lasting():
        program = import_module(module)
        if prepare := getattr(program, "prepare", None):
            prepare()
    return program


def _await_workspace(module: str) -> Path | None:
    """Be ready for an attempt, and wait for it; None when the supervisor wants none, or is gone."""
    begun = time.time()
    score = _set_oom_score(_FIRST_TO_GO)  # memory is for those who work
    may_be_copied = False
    with contextlib.suppress(Exception):  # raised again where there is somebody to tell
        may_be_copied = getattr(_load(module), "may_be_copied", bool)()
    while order := waiting.await_order():
        has_changed = _has_changed_since(begun)
        is_copy = order.leaves_copy and may_be_copied and not has_changed and waiting.leave_copy()
        if not is_copy:
            break
    else:
        return None
    if score:
        _set_oom_score(score)
    waiting.stop_listening()
    if has_changed:
        os.execv(sys.executable, command(module, order.workspace))  # noqa: S606 - as itself, from the start
    return order.workspace


def _has_changed_since(time_s: float) -> bool:
    """Whether a file that was imported has been replaced or removed meanwhile."""
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    try:
        return any(os.stat(file).st_mtime > time_s for file in files if os.path.isabs(file))
    except OSError:
        return True


def _set_oom_score(score: str) -> str | None:
    """Say how readily the kernel may kill this process for want of memory; what it was before, where there is such."""
    try:
        before = _OOM_SCORE.read_text()
        _OOM_SCORE.write_text(score)
    except OSError:
        return None
    return before


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:])))
