"""The object store as runs use it: they wait for it, and say so."""

import logging

from madpo.config import StoreSettings
from madpo.ports import ObjectStore
from madpo.storage.open import named_store
from madpo.storage.patient import PatientStore
from madpo.worker.workspace import Run

logger = logging.getLogger(__name__)


def open_run_store(settings: StoreSettings, run: Run, *, reports: bool = True) -> ObjectStore:
    """The store of a run, which is waited for while it is away, fails or is full, until the run is asked to stop.

    Args:
        settings: Where it is.
        run: Whose store it is.
        reports: Whether the job is told of a wait; of the ranks of a training one does.

    Raises:
        InvalidArgumentError, FailedPreconditionError: See `open_store`.
    """

    def waiting(reason: str) -> None:
        if reports:
            run.wait_for_store(reason)
        elif reason:
            logger.warning("waiting for the object store", extra={"error": reason})

    # What else is checked of a store, the worker has checked at its start.
    named = named_store(settings)
    store = PatientStore(named, waiting=waiting, gives_up=lambda: run.stop_requested is not None)
    store.check()
    return store
