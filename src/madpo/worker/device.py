"""`python -m madpo.worker.device SETTINGS_MODULE SETTINGS_CLASS`: whether runs will find what they are to compute on.

A process of its own, since supervisors of runs do without torch.
"""

import asyncio
import sys
from importlib import import_module

from madpo.config import WorkerSettings, load_settings
from madpo.errors import FailedPreconditionError

_TIMEOUT_S = 180.0
"""A first import of torch from a cold disk takes its time."""


async def require_device(settings: WorkerSettings) -> None:
    """Ask before the first job is taken, and not with each of them.

    Raises:
        FailedPreconditionError: A GPU is asked for, and torch sees none; says what to do.
    """
    if settings.device != "cuda":
        return
    kind = type(settings)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "madpo.worker.device", kind.__module__, kind.__qualname__),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            said, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        raise FailedPreconditionError(
            f"torch did not say within {_TIMEOUT_S:g} s whether there is a GPU: the driver or a GPU hangs (look at "
            "`nvidia-smi` and `dmesg` on the host)"
        ) from error
    if process.returncode != 0:
        raise FailedPreconditionError(said.decode().strip() or "torch cannot be used: `madpo doctor --inside` says why")


def main() -> int:
    """Print what is missing; the exit code is 1 then."""
    from madpo.models.device import require_device as require

    module, name = sys.argv[1:]
    try:
        require(load_settings(getattr(import_module(module), name)))
    except FailedPreconditionError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
