"""What a training asks of its held-out rows: the figure by which a step is the best."""

from collections.abc import Iterator

from madpo.jobs.base import Spec
from madpo.jobs.registry import kind_of
from madpo.jobs.training import EvaluatedTraining
from madpo.spelling import did_you_mean


def unknown_best_metric(spec: Spec) -> Iterator[tuple[str, str]]:
    """The field of a `best_metric` that its kind of training does not measure, and what it does."""
    if not isinstance(spec, EvaluatedTraining) or spec.training.eval_every_steps is None:
        return  # no step is looked at
    name, known = spec.training.best_metric, kind_of(spec).held_out_figures
    if name not in known:
        yield (
            "training.best_metric",
            f"no figure {name!r} on held-out rows{did_you_mean(name, known) or ';'} there are {', '.join(known)}",
        )
