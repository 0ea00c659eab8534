"""Rows of uploaded files to domain values. This is the only door for training text: what passes here is usable.

The form of each row is found by itself (`madpo.data.forms.registry`), read, and checked here: what comes out is the
same whatever form it had. Within a row all contents are texts, or all are messages. Nothing is repaired: a wrong row
is refused by its number.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from madpo.data.columns import PAIR_COLUMNS, ColumnMap
from madpo.data.forms.form import Answered, Asked, Form, Pair, Ranked, Reading
from madpo.data.forms.lists import read_number
from madpo.data.forms.registry import KNOWN_COLUMNS, WEAK_SIGNATURES, detect
from madpo.data.forms.system import with_system
from madpo.data.messages import read_content, read_options, read_text
from madpo.data.ranking import ListRule, ranked_pairs
from madpo.data.raw_row import RawRow, refuse
from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError
from madpo.types import (
    NO_OPTIONS,
    ChatOptions,
    Completion,
    Content,
    DatasetForm,
    DatasetKind,
    DatasetRow,
    Message,
    PreferencePair,
    PromptOnly,
    ResponseList,
)
from madpo.types.columns import COLUMNS, Column

(_WEIGHT,) = (column for column in COLUMNS if column.name == "weight")
MAX_REPORTED_ROWS = 20
"""Unusable rows named before a file is refused."""

_KINDS: dict[type[DatasetRow], DatasetKind] = {
    PreferencePair: DatasetKind.PREFERENCE,
    ResponseList: DatasetKind.LIST,
    Completion: DatasetKind.COMPLETION,
    PromptOnly: DatasetKind.PROMPT,
}


def row_kind(row: DatasetRow) -> DatasetKind:
    """The kind of dataset the row belongs in."""
    return _KINDS[type(row)]


class RowReader:
    """Reads the rows of one upload, each by itself, and counts the forms it finds.

    Args:
        columns: Our names of columns to the file's, where they differ; "" leaves a column unread.
        lists: What becomes of ranked responses. Without a rule a scored list stays a list, two ranked responses are a
            pair, and more are refused, with the choice named.

    Raises:
        InvalidArgumentError: A name in `columns` means nothing.
    """

    def __init__(self, columns: Mapping[str, str] | None = None, *, lists: ListRule | None = None) -> None:
        self._columns = ColumnMap(columns or {}, known=KNOWN_COLUMNS)
        self._lists = lists
        self._rows: Counter[str] = Counter()
        self._found: dict[str, dict[str, set[str]]] = {}

    def read(self, value: Any, number: int) -> list[DatasetRow]:
        """The rows of ours that a row of the file holds: one, or the pairs of ranked responses.

        Args:
            value: What the file holds at this place; anything but an object is refused.
            number: Its number, from 1, for the error.

        Raises:
            InvalidPairError: Its violation's field is `row N.field`.
        """
        row = self._columns.read(value, number)
        form = detect(row)
        reading = with_system(form.read(row), form, row)
        rows = list(self._build(form, reading, row))
        self._count(form, reading, row)
        return rows

    def finish(self) -> None:
        """To be called behind the last row. Raises InvalidArgumentError for a mapped column that no row had."""
        self._columns.check_seen()

    def forms(self) -> tuple[DatasetForm, ...]:
        """The forms of the rows so far, by name, with what was read as what."""
        return tuple(
            DatasetForm(
                name, rows, {ours: " or ".join(sorted(given)) for ours, given in sorted(self._found[name].items())}
            )
            for name, rows in sorted(self._rows.items())
        )

    def _count(self, form: Form, reading: Reading, row: RawRow) -> None:
        self._rows[form.name] += 1
        found = self._found.setdefault(form.name, {})
        for ours, place in form.reads.items():
            if ours == "tools" and not getattr(reading, "tools", None):
                continue
            found.setdefault(ours, set()).add(row.name(place))
        for column in row.values.keys() - form.requires - form.allows - WEAK_SIGNATURES:
            found.setdefault(column, set()).add(row.name(column))

    def _build(self, form: Form, reading: Reading, row: RawRow) -> Iterator[DatasetRow]:
        match reading:
            case Pair():
                yield _pair(reading, form, row)
            case Ranked():
                yield from _ranked(reading, form, row, self._lists)
            case Answered(prompt, completion):
                _refuse_columns(row, (*PAIR_COLUMNS, "weight"))
                _check_one_sort(row, form, prompt=prompt, completion=completion)
                _check_response(completion, form.reads["completion"], row)
                yield Completion(prompt, completion, **_common(row, prompt))
            case Asked(prompt):
                _refuse_columns(row, (*PAIR_COLUMNS, "weight"))
                yield PromptOnly(prompt, **_common(row, prompt))


def parse_row(value: Any, row: int) -> DatasetRow:
    """The one row that a row holds, by the rules of `RowReader` without a choice. Raises InvalidPairError."""
    (parsed,) = RowReader().read(value, row)
    return parsed


def parse_rows(values: Iterator[tuple[int, Any]], reader: RowReader | None = None) -> Iterator[DatasetRow]:
    """Check a whole file; every row must be usable, and all of one kind.

    Rows are given while all is well. From the first unusable row on the rest is only checked, so that one error can
    name up to `MAX_REPORTED_ROWS` of them.

    Args:
        values: Numbered rows, as `madpo.data.files.read_rows` gives them; may raise InvalidPairError and go on.
        reader: Reads each; by default without a mapping.

    Raises:
        InvalidArgumentError: With one violation per unusable row, or because there is no row at all.
    """
    reader = reader or RowReader()
    violations: list[FieldViolation] = []
    first: tuple[int, DatasetKind] | None = None
    while len(violations) < MAX_REPORTED_ROWS:
        try:
            number, value = next(values)
            parsed = reader.read(value, number)
            first = first or (number, row_kind(parsed[0]))
            _check_kind(parsed[0], first)
        except StopIteration:
            break
        except InvalidPairError as error:
            violations += error.violations
        else:
            if not violations:
                yield from parsed
    if violations:
        raise InvalidArgumentError(_summary(violations), violations)
    if first is None:
        raise InvalidArgumentError("the file has no rows")
    reader.finish()


def _pair(pair: Pair, form: Form, row: RawRow) -> PreferencePair:
    prompt, chosen, rejected = pair.prompt, pair.chosen, pair.rejected
    _check_one_sort(row, form, prompt=prompt, chosen=chosen, rejected=rejected)
    _check_response(chosen, form.reads["chosen"], row)
    _check_response(rejected, form.reads["rejected"], row)
    if chosen == rejected:
        row.refuse(form.reads["rejected"], "is the same as chosen: the pair says nothing")
    gold = read_content(row["gold"], "gold", row) if "gold" in row else None
    if gold is not None:
        if isinstance(gold, str) and not isinstance(prompt, str):
            gold = (Message("assistant", gold),)
        _check_one_sort(row, form, prompt=prompt, gold=gold)
        _check_response(gold, "gold", row)
    chosen_reward, rejected_reward, margin = _rewards(row)
    numbers: dict[str, Any] = {column.name: _bounded(row, column) for column in COLUMNS if column.is_checked}
    return PreferencePair(
        prompt,
        chosen,
        rejected,
        reward_margin=margin,
        gold=gold,
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        **numbers,
        **_common(row, prompt, tools=pair.tools, tools_field=form.reads.get("tools", "tools")),
    )


def _ranked(ranked: Ranked, form: Form, row: RawRow, rule: ListRule | None) -> Iterator[DatasetRow]:
    responses, scores = form.reads["responses"], form.reads["scores"]
    names = [_place(responses, index) for index in range(len(ranked.responses))]
    contents = dict(zip(names, ranked.responses, strict=True))
    _check_one_sort(row, form, prompt=ranked.prompt, **contents)
    for name, content in contents.items():
        _check_response(content, name, row)
    if len(set(ranked.responses)) < len(ranked.responses):
        row.refuse(responses.partition("[]")[0], "has the same response twice")
    if len(set(ranked.scores)) == 1:
        row.refuse(scores.partition("[]")[0], "are all the same: the list says nothing")
    if rule is None and not ranked.are_rewards and len(ranked.responses) > 2:
        row.refuse(
            responses.partition("[]")[0],
            f"ranks {len(ranked.responses)} responses: say what becomes of lists (lists=pairs, best_worst or keep)",
        )
    if rule == "keep" or (rule is None and ranked.are_rewards):
        _refuse_columns(row, PAIR_COLUMNS)
        yield ResponseList(
            ranked.prompt,
            ranked.responses,
            ranked.scores,
            weight=_bounded(row, _WEIGHT),
            **_common(row, ranked.prompt),
        )
    elif rule is None:
        better, worse = next(ranked_pairs(ranked, "best_worst"))
        yield _pair(Pair(ranked.prompt, ranked.responses[better], ranked.responses[worse]), _as_pair(form), row)
    else:
        _refuse_columns(row, PAIR_COLUMNS)
        for better, worse in ranked_pairs(ranked, rule):
            yield _listed_pair(ranked, better, worse, row)


def _listed_pair(ranked: Ranked, better: int, worse: int, row: RawRow) -> PreferencePair:
    chosen_reward = rejected_reward = margin = None
    if ranked.are_rewards:
        chosen_reward, rejected_reward = ranked.scores[better], ranked.scores[worse]
        margin = chosen_reward - rejected_reward
        if not math.isfinite(margin):
            row.refuse(f"scores[{better}]", f"minus scores[{worse}] is not finite")
    return PreferencePair(
        ranked.prompt,
        ranked.responses[better],
        ranked.responses[worse],
        reward_margin=margin,
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        weight=_bounded(row, _WEIGHT),
        **_common(row, ranked.prompt),
    )


def _common(row: RawRow, prompt: Content, *, tools: Any = None, tools_field: str = "tools") -> dict[str, Any]:
    """What rows of every kind have."""
    return {
        "row": row.number,
        "options": _options(row, prompt, tools, tools_field),
        "id": _name(row, "id"),
        "source": _name(row, "source"),
    }


def _options(row: RawRow, prompt: Content, tools: Any, tools_field: str) -> ChatOptions:
    if tools is None:
        tools, tools_field = row.values.get("tools"), "tools"
    elif "tools" in row:
        row.refuse("tools", f"is given, and so is {tools_field}: leave one of them out")
    options = read_options(tools, row.values.get("chat_template_kwargs"), row, tools_field=tools_field)
    if isinstance(prompt, str) and options != NO_OPTIONS:
        field = tools_field if options.tools else "chat_template_kwargs"
        row.refuse(field, "is for a chat template, and plain text has none: give chat messages, or leave it out")
    return options


def _name(row: RawRow, field: str) -> str | None:
    """A row's name: text, or a whole number as text; of several, one text."""
    value = row.values.get(field)
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return ", ".join(read_text(each, f"{field}[{index}]", row) for index, each in enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return read_text(value, field, row)


def _place(places: str, index: int) -> str:
    """One place out of `completions[].completion`."""
    return places.partition(",")[0].replace("[]", f"[{index}]")


def _as_pair(form: Form) -> Form:
    """The form with the names that two ranked responses have as a pair."""
    responses = form.reads["responses"].partition("[]")[0]
    return replace(form, reads={**form.reads, "chosen": responses, "rejected": responses})


def _refuse_columns(row: RawRow, columns: Iterable[str]) -> None:
    for column in columns:
        if column in row:
            row.refuse(column, "is for preference pairs: leave it unread")


def _check_one_sort(row: RawRow, form: Form, **contents: Content) -> None:
    texts = [field for field, content in contents.items() if isinstance(content, str)]
    if texts and len(texts) < len(contents):
        names = ", ".join(row.name(form.reads.get(field, field)) for field in contents)
        row.refuse(
            form.reads.get(texts[0], texts[0]), f"is text while other fields are messages; make all of {names} the same"
        )


def _check_response(content: Content, field: str, row: RawRow) -> None:
    if isinstance(content, str):
        if not content.strip():
            row.refuse(field, "is empty")
        return
    if content[0].role != "assistant":
        row.refuse(f"{field}[0].role", f"must be assistant in a response, got {content[0].role!r}")
    if all(turn.is_empty for turn in content):
        row.refuse(field, "is empty")


def _rewards(row: RawRow) -> tuple[float | None, float | None, float | None]:
    """Chosen reward, rejected reward, and the margin: `margin` where given, else their difference."""
    given = read_number(row["margin"], "margin", row) if "margin" in row else None
    if "chosen_reward" not in row and "rejected_reward" not in row:
        return None, None, given
    for field in ("chosen_reward", "rejected_reward"):
        if field not in row:
            row.refuse(field, "is missing while the other reward is given")
    chosen, rejected = (read_number(row[field], field, row) for field in ("chosen_reward", "rejected_reward"))
    if not math.isfinite(chosen - rejected):
        row.refuse("chosen_reward", "minus rejected_reward is not finite")
    return chosen, rejected, chosen - rejected if given is None else given


def _bounded(row: RawRow, column: Column) -> float | None:
    """A number within the column's bounds; None where it is absent, and so must its partner be."""
    field = column.file_name
    if field not in row:
        if column.partner in row:
            row.refuse(field, f"is missing while {column.partner} is given")
        return None
    number = read_number(row[field], field, row)
    if not 0 <= number <= column.most:
        expected = "at least 0" if column.most == math.inf else f"in [0, {column.most:g}]"
        row.refuse(field, f"must be {expected}, got {number}")
    return number


def _check_kind(parsed: DatasetRow, first: tuple[int, DatasetKind]) -> None:
    number, kind = first
    if row_kind(parsed) is not kind:
        refuse(
            parsed.row, "", f"is a {row_kind(parsed)} row while row {number} is a {kind} row: a dataset has one kind"
        )


def _summary(violations: list[FieldViolation]) -> str:
    count = f"at least {len(violations)}" if len(violations) == MAX_REPORTED_ROWS else str(len(violations))
    noun = "row" if len(violations) == 1 else "rows"
    return f"{count} unusable {noun}, first {violations[0].field}: {violations[0].description}"
