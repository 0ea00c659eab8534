"""`python -m madpo.worker.program MODULE WORKSPACE`: runs `MODULE.main(WORKSPACE)` as a process of an attempt.

The module is imported here, not by the interpreter, so that an import that fails is told like any other failure.
"""

import faulthandler
import sys
from importlib import import_module
from pathlib import Path

from madpo.imports import lasting
from madpo.worker.failure import telling


def command(module: str, workspace: Path) -> list[str]:
    """What starts such a process."""
    return [sys.executable, "-m", "madpo.worker.program", module, str(workspace)]


def main(module: str, workspace: Path) -> int:
    """The exit code of the module's `main`; what it raises is left in the workspace."""
    faulthandler.enable()
    with telling(workspace):
        with lasting():
            program = import_module(module)
        return program.main(workspace) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
