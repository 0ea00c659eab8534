"""Arguments that stand for a job, a model or a dataset, and what a shell offers for them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from madpo_client.cli.context import quiet_client

if TYPE_CHECKING:
    from madpo.types import StoreFinding
    from madpo_client.client import Client

_OFFERED = 100
"""Most jobs that are asked for while somebody types."""


def _completion(
    ids_and_names: "Callable[[Client], Iterable[tuple[str, str]]]",
) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """What a shell offers: names, each with its id, and `@last`; nothing where no gateway answers at once."""

    def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        from madpo.errors import MadpoError

        try:
            with quiet_client(context) as client:
                known = list(ids_and_names(client))
        except MadpoError:
            known = []
        offered = {"@last": "the newest"}
        for each, name in known:
            by_id = incomplete.startswith(("job-", "model-", "dataset-"))
            offered.setdefault(*((each, name) if by_id or not name else (name, each)))
        return [(word, note) for word, note in offered.items() if word.startswith(incomplete)]

    return complete


def _say_nothing(finding: "StoreFinding") -> None:
    """What cannot be read is not offered."""


complete_jobs = _completion(
    lambda client: ((each.id, each.job.display_name) for each in client.jobs.list(limit=_OFFERED))
)
complete_models = _completion(
    lambda client: ((each.model_id, each.display_name) for each in client.models.list(on_unreadable=_say_nothing))
)
complete_datasets = _completion(
    lambda client: ((each.dataset_id, each.display_name) for each in client.datasets.list(on_unreadable=_say_nothing))
)


def complete_methods(incomplete: str) -> list[tuple[str, str]]:
    """What a shell offers as a method."""
    from madpo.losses.registry import METHODS

    return [(name, method.summary) for name, method in METHODS.items() if name.startswith(incomplete)]


_FORMS = "by id, the beginning of one, name, or @last."
JOB_HELP, MODEL_HELP, DATASET_HELP = (f"{sort}, {_FORMS}" for sort in ("Job", "Model", "Dataset"))

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help=JOB_HELP, autocompletion=complete_jobs)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=complete_models)]
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help=DATASET_HELP, autocompletion=complete_datasets)]
