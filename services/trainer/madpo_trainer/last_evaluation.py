"""The evaluation after the last step, which must not cost the model.

An error of it becomes a warning. What takes the process along (the kernel, for want of memory; ranks that wait for each
other) leaves only a note that the attempt began it, without which all attempts would end in the same place.
"""

from collections.abc import Callable

from madpo.ports import ObjectStore
from madpo.storage import documents, keys
from madpo.worker.phase import Interrupted
from madpo.worker.tolerance import Tolerance
from madpo.worker.workspace import Run
from madpo_trainer.ranks import Ranks

_TRIES = 2
"""One may have been killed for other reasons."""


def evaluate_last(
    evaluate: Callable[[], dict[str, float]], run: Run, store: ObjectStore, ranks: Ranks, tolerance: Tolerance
) -> dict[str, float]:
    """The figures; none, with a warning, where they cannot be had. All ranks must call."""
    tries = ranks.lead(lambda: note_begin(store, run.job.job_id, attempt=run.attempt))
    if tries > _TRIES:
        tolerance.warnings.append(f"no held-out evaluation after training: {tries - 1} attempts died of it")
        return {}
    nothing: dict[str, float] = {}
    try:
        if ranks.in_step:  # the others cannot be told of an error: they would wait for this rank
            return evaluate()
        return tolerance.attempt("the held-out evaluation after training", evaluate, nothing)
    except Interrupted:
        if ranks.is_leader:  # asked to stop, which is no death
            store.delete(keys.last_evaluation(run.job.job_id, attempt=run.attempt))
        raise


def note_begin(store: ObjectStore, job_id: str, *, attempt: int) -> int:
    """Note that an attempt begins it; how many have, this one included."""
    store.put(keys.last_evaluation(job_id, attempt=attempt), documents.seal({}))
    return sum(1 for _ in store.list(keys.last_evaluations(job_id)))
