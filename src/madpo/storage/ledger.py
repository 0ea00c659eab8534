"""The ledger of a job that has not published it as an artifact: the parts its newest checkpoint stands on."""

from madpo.errors import NotFoundError
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import list_checkpoints

LEDGER_PARTS = "ledger_parts"
"""In a checkpoint's metadata: keys of the parts with the rows of all steps up to it, in order."""


def ledger_parts(store: ObjectStore, job_id: str) -> list[str]:
    """Keys of the parts up to the newest whole checkpoint, in order; steps that another attempt repeats do not count.

    Raises:
        NotFoundError: No checkpoint has any.
    """
    checkpoint = next(iter(list_checkpoints(store, job_id)), None)
    if checkpoint is not None:
        prefix = keys.checkpoint(job_id, step=checkpoint.step, attempt=checkpoint.attempt)
        if parts := bundle.read_manifest(store, prefix).metadata.get(LEDGER_PARTS):
            return list(parts)
    raise NotFoundError(f"{job_id} has no ledger: its rows are stored with each checkpoint of a policy training")
