"""A job's ledger as an Arrow table, and the texts of its pairs.

One row per pair and visit: `pair_id`, `row` (number in the uploaded file, from 1), `epoch` (from 0), `step` (from 1),
`reward_margin` (reward-model logits; null without one), `weight`, `implicit_margin` (nats times beta), `loss` (its
weight included), `tokens` (of both responses), `neutral` (no scorer answered, so the weight was 1), `dataset_weight`,
`id` and `source` (as the dataset gives them, else null), and the method's own figures. What depends on the policy is as
it was before the step's update.
"""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from madpo.errors import FailedPreconditionError, NotFoundError
from madpo.types import Content, DatasetRow, Job, JobKind, JobState, Message, PreferencePair, ResponseList
from madpo_client.session import Session

ARTIFACT = "ledger.parquet"
TEXT_COLUMNS = ("prompt", "chosen", "rejected")


def join_parts(parts: list[bytes]) -> pa.Table:
    """Parquet files as one table; a column that one of them lacks is null there."""
    tables = [pq.read_table(io.BytesIO(part)) for part in parts]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def require_ledger(job: Job) -> None:
    """Raises FailedPreconditionError for a job of a kind that keeps no ledger."""
    if job.kind is not JobKind.POLICY_TRAINING:
        raise FailedPreconditionError(f"{job.job_id} is a {job.kind} job; only a policy training keeps a ledger")


def not_yet(job: Job) -> FailedPreconditionError:
    """What to say of a job that has stored no part of its ledger."""
    if job.state.is_terminal:
        return FailedPreconditionError(
            f"{job.job_id} has no ledger: it ended as {job.state} before its first checkpoint, which would have held it"
        )
    every = job.spec.get("training", {}).get("checkpoint_every_steps")
    period = f", every {every} steps" if every else ""
    standing = f"{job.state} at step {job.progress.step}" if job.progress else str(job.state)
    return FailedPreconditionError(
        f"{job.job_id} has no ledger yet: it is {standing}, and rows come with its checkpoints{period}"
        if job.state is JobState.RUNNING
        else f"{job.job_id} has no ledger yet: it is {job.state} and has not begun to train"
    )


def add_text(session: Session, table: pa.Table, dataset_id: str) -> pa.Table:
    """The table with `prompt`, `chosen` and `rejected` of each row, read from the job's dataset.

    Messages of a chat are written as `role: content`, a line each. Of a list of responses the best and the worst stand
    for the pair.

    Raises:
        NotFoundError: The dataset is gone.
    """
    numbers = table["row"].to_pylist()
    try:
        rows = session.run(session.gateway.read_dataset_rows(dataset_id, numbers))
    except NotFoundError as error:
        raise NotFoundError(
            f"the texts of the ledger's pairs cannot be read: {error}; leave them out (--no-text)"
        ) from error
    # A ranked list of the file may be several pairs, which share its number.
    by_number: dict[int, dict[str, Mapping[str, str]]] = {}
    for row in rows:
        pair_id = row.pair_id if isinstance(row, PreferencePair) else ""
        by_number.setdefault(row.row, {})[pair_id] = texts_of(row)
    texts = [
        by_number[number].get(pair_id) or next(iter(by_number[number].values()))
        for number, pair_id in zip(numbers, table["pair_id"].to_pylist(), strict=True)
    ]
    for name in TEXT_COLUMNS:
        table = table.append_column(name, pa.array([text.get(name) for text in texts], pa.string()))
    return table


def texts_of(row: DatasetRow) -> Mapping[str, str]:
    """What `add_text` says of a row; a completion or a prompt has neither chosen nor rejected."""
    contents: dict[str, Any] = {"prompt": row.prompt}
    match row:
        case PreferencePair():
            contents |= {"chosen": row.chosen, "rejected": row.rejected}
        case ResponseList():
            pair = row.as_pair()
            contents |= {"chosen": pair.chosen, "rejected": pair.rejected}
    return {name: _as_text(content) for name, content in contents.items()}


def _as_text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(f"{turn.role}: {_said(turn)}" for turn in content)


def _said(turn: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in turn.tool_calls]
    return " ".join(([turn.content] if turn.content or not calls else []) + calls)
