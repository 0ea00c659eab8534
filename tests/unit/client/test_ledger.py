"""The ledger: what the trainer stores, what questions to it answer, and what a terminal shows."""

import io
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from madpo.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from madpo.storage import bundle, keys
from madpo.storage.checkpoints import CheckpointStore
from madpo.storage.ledger import LEDGER_PARTS, ledger_parts
from madpo.storage.local import LocalStore
from madpo.types import Job, JobKind, JobProgress, JobState, Message, PreferencePair, ResponseList
from madpo_client.ledger import query, show
from madpo_client.ledger.summary import summarize
from madpo_client.ledger.table import join_parts, not_yet, require_ledger, texts_of
from madpo_trainer.ledger import SCHEMA, Ledger, LedgerRow

JOB = "job-" + "0" * 32


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def entry(row: int, step: int = 1, **fields: Any) -> LedgerRow:
    figures = {"reward_margin": 1.0, "weight": 1.0, "implicit_margin": 0.0, "loss": 0.7, "tokens": 5, "epoch": 0}
    return LedgerRow(pair_id=f"pair-{row}", row=row, step=step, **{**figures, **fields})


# ---- stored by the trainer


def test_what_a_method_says_of_its_pairs_are_columns_behind_those_of_every_ledger(
    store: LocalStore, tmp_path: Path
) -> None:
    ledger = Ledger(store, job_id=JOB, attempt=1, parts=[])
    ledger.extend([entry(1, figures={"beta_dpo/beta": 0.5, "kept": True})])
    ledger.extend([entry(2, figures={"beta_dpo/beta": 0.25, "kept": False}, reward_margin=None, neutral=True)])
    ledger.cut(1)
    ledger.store()
    ledger.extend([entry(1, step=2)])
    ledger.cut(2)
    ledger.store()
    ledger.join(tmp_path / "ledger.parquet")

    table = pq.read_table(tmp_path / "ledger.parquet")

    assert table.schema.names == [*SCHEMA.names, "beta_dpo_beta", "kept"]
    assert table.schema.field("kept").type == pa.bool_()
    assert table["row"].to_pylist() == [1, 2, 1]
    assert table["beta_dpo_beta"].to_pylist() == [0.5, 0.25, None]
    assert table["kept"].to_pylist() == [True, False, None]
    assert table["reward_margin"].to_pylist() == [1.0, None, 1.0]
    assert join_parts([store.get(key) for key in ledger.parts]) == table


def test_the_ledger_of_an_unfinished_job_is_what_its_newest_checkpoint_stands_on(
    store: LocalStore, tmp_path: Path
) -> None:
    attempts: dict[int, CheckpointStore] = {}

    def publish(attempt: int, step: int, parts: list[str]) -> CheckpointStore:
        ledger = Ledger(store, job_id=JOB, attempt=attempt, parts=parts)
        ledger.extend([entry(attempt, step=step)])
        ledger.cut(step)
        ledger.store()
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / "state.json").write_text("{}")
        checkpoints = attempts.setdefault(attempt, CheckpointStore(store, JOB, attempt=attempt))
        checkpoints.take_ownership()
        checkpoints.publish(step, tmp_path / "files", metadata={"step": step, LEDGER_PARTS: ledger.parts})
        return checkpoints

    def part(attempt: int, step: int) -> str:
        (info,) = store.list(f"{keys.job(JOB)}/ledger/step-{step:08d}-a{attempt:05d}-")
        return info.key

    publish(1, 10, [])
    first = part(1, 10)
    lost = publish(1, 20, [first])
    bundle.delete(store, keys.checkpoint(JOB, step=20, attempt=1))
    assert lost.latest() is not None
    publish(2, 20, [first])

    assert ledger_parts(store, JOB) == [first, part(2, 20)]
    assert store.head(part(1, 20)) is not None


def test_a_job_without_checkpoints_or_with_another_kind_of_them_has_no_ledger(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="has no ledger"):
        ledger_parts(store, JOB)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "state.json").write_text("{}")
    checkpoints = CheckpointStore(store, JOB, attempt=1)
    checkpoints.take_ownership()
    checkpoints.publish(1, tmp_path / "files", metadata={"step": 1, LEDGER_PARTS: []})
    with pytest.raises(NotFoundError, match="has no ledger"):
        ledger_parts(store, JOB)


# ---- questions

# row: reward margin, weight, then (implicit margin, loss) of each epoch
PAIRS: dict[int, tuple[float | None, float, list[tuple[float, float]]]] = {
    1: (2.0, 0.5, [(0.0, 0.4), (1.0, 0.2)]),
    2: (1.0, 1.0, [(-0.5, 0.8), (0.5, 0.4)]),
    3: (-1.0, 1.5, [(0.5, 1.0), (-0.5, 1.4)]),
    4: (-3.0, 0.5, [(0.25, 0.3), (-0.75, 0.5)]),
    5: (0.0, 1.0, [(0.0, 0.7), (0.0, 0.7)]),
    6: (None, 1.0, [(0.0, 0.7), (0.5, 0.5)]),
}


@pytest.fixture
def ledger(store: LocalStore) -> Any:
    writer = Ledger(store, job_id=JOB, attempt=1, parts=[])
    for epoch in range(2):
        for row, (margin, weight, visits) in PAIRS.items():
            implicit_margin, loss = visits[epoch]
            step = 6 * epoch + row
            writer.extend(
                [
                    entry(
                        row,
                        step=step,
                        epoch=epoch,
                        reward_margin=margin,
                        weight=weight,
                        implicit_margin=implicit_margin,
                        loss=loss,
                        figures={"madpo/coefficient": 1.0 + row},
                    )
                ]
            )
    writer.cut(12)
    writer.store()
    return join_parts([store.get(writer.parts[0])])


def rows_of(table: Any) -> list[int]:
    return list(table["row"].to_pylist())


def test_a_pair_counts_once_as_it_was_last_trained_on(ledger: Any) -> None:
    last = query.last_visits(ledger)
    assert rows_of(last) == [1, 2, 3, 4, 5, 6]
    assert set(last["epoch"].to_pylist()) == {1}
    assert last["implicit_margin"].to_pylist() == [1.0, 0.5, -0.5, -0.75, 0.0, 0.5]
    assert last.schema == ledger.schema


def test_an_epoch_is_chosen_by_its_number(ledger: Any) -> None:
    first = query.of_epoch(ledger, 0)
    assert first["implicit_margin"].to_pylist() == [0.0, -0.5, 0.5, 0.25, 0.0, 0.0]
    with pytest.raises(InvalidArgumentError, match="no epoch 2; it has 0 to 1"):
        query.of_epoch(ledger, 2)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("reward_margin < 0", [3, 4]),
        ("reward_margin IS NULL OR madpo_coefficient > 5.5", [5, 6]),
        ("abs(reward_margin) >= 2 AND weight < 1", [1, 4]),
        ("loss > (SELECT avg(loss) FROM ledger)", [3, 5]),
        ("row = 4", [4]),
        ("pair_id = 'nobody'", []),
    ],
)
def test_sql_filters(ledger: Any, where: str, rows: list[int]) -> None:
    assert rows_of(query.matching(query.last_visits(ledger), where)) == rows


@pytest.mark.parametrize(
    ("by", "descending", "rows"),
    [
        ("weight", True, [3, 2, 5, 6, 1, 4]),
        ("reward_margin", False, [4, 3, 5, 2, 1, 6]),
        ("reward_margin", True, [1, 2, 5, 3, 4, 6]),
        ("abs(implicit_margin)", True, [1, 4, 2, 3, 6, 5]),
    ],
)
def test_sorting_puts_nulls_last_and_equal_pairs_by_row(
    ledger: Any, by: str, descending: bool, rows: list[int]
) -> None:
    assert rows_of(query.ordered(query.last_visits(ledger), by, descending=descending)) == rows


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("margin < 0", 'column "margin" not found'),
        ("reward_margin <", "syntax error"),
        ("reward_margin < 0); DROP VIEW ledger; --", "syntax error"),
        ("weight, loss", "single expression"),
        ("", "without selection"),
        ("pair_id > 3", "VARCHAR"),
    ],
)
def test_a_wrong_expression_is_refused_with_the_columns_there_are(ledger: Any, where: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match="reward_margin, weight, implicit_margin") as refused:
        query.matching(ledger, where)
    assert reason in str(refused.value)
    with pytest.raises(InvalidArgumentError):
        query.ordered(ledger, where, descending=True)


def test_an_expression_sees_no_file_no_variable_and_cannot_change_that(ledger: Any, tmp_path: Path) -> None:
    secret = pa.table({"secret": [1]})
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    for source in (f"read_csv('{tmp_path}/secret.csv')", f"'{tmp_path}/secret.csv'", "secret", "glob('/*')"):
        with pytest.raises(InvalidArgumentError):
            query.matching(ledger, f"1 = (SELECT count(*) FROM {source})")
    assert secret.num_rows == 1
    for statement in ("SET enable_external_access = true", f"COPY ledger TO '{tmp_path}/stolen.csv'"):
        with pytest.raises(InvalidArgumentError), query.asking(ledger) as connection:
            connection.execute(statement)
    assert not (tmp_path / "stolen.csv").exists()


def test_columns_that_an_expression_mentions_are_found() -> None:
    assert query.mentions_text("chosen LIKE '%film%'")
    assert query.mentions_text('length("PROMPT") > 3')
    assert not query.mentions_text("chosen_tokens > prompts")
    assert query.mentions("madpo_coefficient>1", "madpo_coefficient")
    assert not query.mentions("madpo_coefficient > 1", "coefficient")


# ---- the sum


def test_the_sum_says_what_became_of_contradicted_pairs(ledger: Any) -> None:
    groups = {group.verdict: group for group in summarize(ledger)}

    assert list(groups) == ["agrees", "contradicts", "undecided", "no margin"]
    agrees, contradicts = groups["agrees"], groups["contradicts"]
    assert (agrees.pairs, agrees.visits, contradicts.pairs, contradicts.visits) == (2, 4, 2, 4)
    assert contradicts.pair_share == pytest.approx(1 / 3)
    assert contradicts.weight_share == pytest.approx(4.0 / 11.0)
    assert sum(group.weight_share for group in groups.values()) == pytest.approx(1)
    assert (agrees.reward_margin, contradicts.reward_margin) == (1.5, -2.0)
    assert (agrees.weight, contradicts.weight) == (0.75, 1.0)
    assert (contradicts.lowest_weight, contradicts.highest_weight) == (0.5, 1.5)
    assert (agrees.first_implicit_margin, agrees.last_implicit_margin) == (-0.25, 0.75)
    assert (contradicts.first_implicit_margin, contradicts.last_implicit_margin) == (0.375, -0.625)
    assert (agrees.first_accuracy, agrees.last_accuracy) == (0.25, 1.0)
    assert (contradicts.first_accuracy, contradicts.last_accuracy) == (1.0, 0.0)
    assert (agrees.first_loss, agrees.last_loss) == pytest.approx((0.6, 0.3))
    assert (contradicts.first_loss, contradicts.last_loss) == pytest.approx((0.65, 0.95))
    assert (groups["undecided"].reward_margin, groups["no margin"].reward_margin) == (0.0, None)


def test_a_margin_known_at_one_visit_is_the_pairs_margin() -> None:
    rows = [entry(1, reward_margin=None, neutral=True), entry(1, step=2, reward_margin=-1.0)]
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    (group,) = summarize(pa.table(columns, schema=SCHEMA))
    assert (group.verdict, group.pairs, group.visits, group.reward_margin) == ("contradicts", 1, 2, -1.0)


# ---- what a terminal shows


def shown(renderable: Any, width: int = 100) -> str:
    out = StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_the_sum_begins_with_sentences_that_answer(ledger: Any) -> None:
    lines = shown(show.summary_view(summarize(ledger)), width=130).splitlines()
    assert lines[0] == "The reward model contradicts the label of 2 of 6 pairs (33.3%); they got 36.4% of all weight."
    assert lines[1] == (
        "When last trained on, the policy sided with the label on 0.0% of them"
        " and on 100.0% of those the reward model agrees with."
    )
    cells = {line[:34].rstrip(): line[34:].split() for line in lines[3:]}
    assert cells[""] == ["agrees", "contradicts", "undecided", "no", "margin"]
    assert cells["mean reward margin"] == ["+1.500", "-2.000", "+0.000", "-"]
    assert cells["accuracy, first visit"] == ["25.0%", "100.0%", "50.0%", "50.0%"]


def test_pairs_seen_once_have_no_first_and_last(ledger: Any) -> None:
    text = shown(show.summary_view(summarize(query.of_epoch(ledger, 0))))
    assert "first visit" not in text
    assert "accuracy" in text


def test_a_ledger_without_margins_says_that_nobody_was_asked(ledger: Any) -> None:
    text = shown(show.summary_view(summarize(query.matching(ledger, "reward_margin IS NULL"))))
    assert text.startswith("No reward model was asked about these 1 pairs.")
    agreed = shown(show.summary_view(summarize(query.matching(ledger, "reward_margin > 0"))))
    assert agreed.startswith("The reward model contradicts none of the 2 pairs.")


def test_pairs_are_shown_with_their_texts_on_one_line_each_and_cut_where_they_are_long(ledger: Any) -> None:
    pairs = query.matching(query.last_visits(ledger), "row in (3, 6)")
    texts = {"prompt": ["How was\nit?", "p"], "chosen": ["[bold]good", "word " * 100], "rejected": ["bad", None]}
    for name, values in texts.items():
        pairs = pairs.append_column(name, pa.array(values, pa.string()))

    lines = shown(show.pairs_view(pairs, (*show.COLUMNS, "madpo_coefficient")), width=1000).splitlines()

    assert lines[0] == "row  step  reward_margin  weight  implicit_margin   loss  madpo_coefficient"
    assert lines[2] == "  3     9         -1.000   1.500           -0.500  1.400              4.000"
    assert lines[3:6] == ["    How was it?", "    + [bold]good", "    - bad"]
    assert lines[6] == "  6    12              -   1.000           +0.500  0.500              7.000"
    assert len(lines[8]) == len("    + ") + 240
    assert lines[8].endswith("…")
    assert len(lines) == 9
    assert max(map(len, shown(show.pairs_view(pairs), width=60).splitlines())) <= 60


def test_without_texts_a_pair_is_one_line(ledger: Any) -> None:
    lines = shown(show.pairs_view(query.last_visits(ledger))).splitlines()
    assert len(lines) == 7
    assert lines[1] == "  1     7         +2.000   0.500           +1.000  0.200"


def test_a_text_cannot_steer_the_terminal(ledger: Any) -> None:
    pairs = query.matching(query.last_visits(ledger), "row = 1")
    for name in ("prompt", "chosen", "rejected"):
        pairs = pairs.append_column(name, pa.array(["red \x1b[31m \x07 \u202e text"]))
    pairs = pairs.append_column("id", pa.array(["row \x1b]0;owned\x07 1"]))
    text = shown(show.pairs_view(pairs, (*show.COLUMNS, "id")), width=200)
    assert "row \ufffd]0;owned\ufffd 1" in text
    assert "red \ufffd[31m \ufffd \ufffd text" in text
    assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_chats_are_written_by_turns_and_the_best_and_worst_of_a_list_stand_for_a_pair() -> None:
    chat = (Message("user", "How?"), Message("assistant", "So."))
    assert texts_of(PreferencePair(chat, "a", "b", row=1)) == {
        "prompt": "user: How?\nassistant: So.",
        "chosen": "a",
        "rejected": "b",
    }
    listed = ResponseList("p", ("fine", "best", "worst"), (0.5, 2.0, -1.0), row=1)
    assert texts_of(listed) == {"prompt": "p", "chosen": "best", "rejected": "worst"}


# ---- which job


def job(state: JobState, kind: JobKind = JobKind.POLICY_TRAINING, **fields: Any) -> Job:
    spec = {"method": {"name": "madpo"}, "training": {"checkpoint_every_steps": 100}}
    return Job(JOB, kind, state, spec, **fields)


def test_what_a_job_without_a_ledger_is_told_depends_on_where_it_stands() -> None:
    with pytest.raises(FailedPreconditionError, match="a reward_training job; only a policy training keeps a ledger"):
        require_ledger(job(JobState.RUNNING, JobKind.REWARD_TRAINING))
    require_ledger(job(JobState.RUNNING))
    assert "WAITING and has not begun to train" in str(not_yet(job(JobState.WAITING)))
    running = str(not_yet(job(JobState.RUNNING, progress=JobProgress(step=7))))
    assert "RUNNING at step 7, and rows come with its checkpoints, every 100 steps" in running
    assert "ended as FAILED before its first checkpoint" in str(not_yet(job(JobState.FAILED)))


def test_rows_that_are_not_all_say_how_far_they_reach() -> None:
    assert show.describe_rows(job(JobState.SUCCEEDED), last_step=12) == f"{JOB} (madpo), 12 steps"
    running = show.describe_rows(job(JobState.RUNNING, progress=JobProgress(15, 20)), last_step=12)
    assert running == f"{JOB} (madpo) is RUNNING: rows up to its newest checkpoint, step 12 of 20"
    assert show.describe_rows(job(JobState.CANCELLED), last_step=12).endswith("newest checkpoint, step 12")


def test_the_parts_are_ordinary_parquet(store: LocalStore) -> None:
    writer = Ledger(store, job_id=JOB, attempt=1, parts=[])
    writer.cut(1)
    writer.store()
    assert writer.parts == []
    writer.extend([entry(1)])
    writer.cut(2)
    writer.store()
    assert pq.read_schema(io.BytesIO(store.get(writer.parts[0]))) == SCHEMA
