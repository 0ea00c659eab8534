"""Imports of large packages, made once as a process starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Import in this block what stays for the life of the process.

    Torch and transformers make a million objects, none of them garbage. To look through them again and again while they
    are made is a quarter of the time of importing them; afterwards no collection looks at them any more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
