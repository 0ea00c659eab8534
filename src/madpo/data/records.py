"""Rows of uploaded files to domain values. This is the only door for training text: what passes here is usable.

One function per shape; the shape is recognised row by row from the columns that are present, never from the first row:

    prompt, chosen, rejected      a preference pair; optional `margin`, or `chosen_reward` with `rejected_reward`; and
                                  `gold`, `chosen_uncertainty` with `rejected_uncertainty`, `semantic_distance`
    prompt, responses, scores     a list of responses, one score each, higher is better
    prompt, completion            a completion
    prompt                        a prompt alone

Each text is a string, or a list of chat messages; within a row all are of one sort. Any row may have `tools` and
`chat_template_kwargs`, `id` and `source`; pairs and lists a `weight`. A column holding null is absent; columns not
named above are ignored. Nothing is repaired: a wrong row is refused by its number.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from madpo.data.messages import read_content, read_options, read_text
from madpo.data.rows import RawRow, refuse
from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError
from madpo.types import (
    NO_OPTIONS,
    ChatOptions,
    Completion,
    Content,
    DatasetKind,
    DatasetRow,
    PreferencePair,
    PromptOnly,
    ResponseList,
)

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "responses",
    "scores",
    "gold",
    "margin",
    "chosen_reward",
    "rejected_reward",
    "chosen_uncertainty",
    "rejected_uncertainty",
    "semantic_distance",
    "weight",
    "tools",
    "chat_template_kwargs",
    "id",
    "source",
)
"""Columns that mean something; the others are not even read where the format allows it."""

MAX_RESPONSES = 64
"""Longest list of responses."""

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


def parse_row(value: Any, row: int) -> DatasetRow:
    """Check one row.

    Args:
        value: What the file holds at this place; anything but an object is refused.
        row: Its number, from 1, for the error.

    Raises:
        InvalidPairError: Its violation's field is `row N.field`.
    """
    if not isinstance(value, Mapping):
        refuse(row, "", f"must be an object with named fields, got {type(value).__name__}")
    present = RawRow(row, {column: value[column] for column in COLUMNS if value.get(column) is not None})
    return _recognise(present)(present)


def parse_rows(values: Iterator[tuple[int, Any]]) -> Iterator[DatasetRow]:
    """Check a whole file; every row must be usable and of the kind of the first.

    Rows are given while all is well. From the first unusable row on the rest is only checked, so that one error can
    name up to `MAX_REPORTED_ROWS` of them.

    Args:
        values: Numbered rows, as `madpo.data.files.read_rows` gives them; may raise InvalidPairError and go on.

    Raises:
        InvalidArgumentError: With one violation per unusable row, or because there is no row at all.
    """
    violations: list[FieldViolation] = []
    first: tuple[int, DatasetKind] | None = None
    while len(violations) < MAX_REPORTED_ROWS:
        try:
            number, value = next(values)
            parsed = parse_row(value, number)
            first = first or (number, row_kind(parsed))
            _check_kind(parsed, first)
        except StopIteration:
            break
        except InvalidPairError as error:
            violations += error.violations
        else:
            if not violations:
                yield parsed
    if violations:
        raise InvalidArgumentError(_summary(violations), violations)
    if first is None:
        raise InvalidArgumentError("the file has no rows")


Parser = Callable[[RawRow], DatasetRow]


def _recognise(row: RawRow) -> Parser:
    shapes: list[tuple[Parser, tuple[str, ...]]] = [
        (_parse_pair, ("chosen", "rejected")),
        (_parse_list, ("responses", "scores")),
        (_parse_completion, ("completion",)),
    ]
    found = [(parse, columns) for parse, columns in shapes if any(column in row for column in columns)]
    if len(found) > 1:
        given = ", or ".join(" and ".join(columns) for _, columns in found)
        row.refuse(found[-1][1][0], f"give {given}, not both")
    return found[0][0] if found else _parse_prompt


def _parse_pair(row: RawRow) -> PreferencePair:
    prompt, chosen, rejected = (_content(row, field) for field in ("prompt", "chosen", "rejected"))
    _check_one_sort(row, prompt=prompt, chosen=chosen, rejected=rejected)
    _check_response(chosen, "chosen", row)
    _check_response(rejected, "rejected", row)
    if chosen == rejected:
        row.refuse("rejected", "is the same as chosen: the pair says nothing")
    gold = _content(row, "gold") if "gold" in row else None
    if gold is not None:
        _check_one_sort(row, prompt=prompt, gold=gold)
        _check_response(gold, "gold", row)
    chosen_reward, rejected_reward, margin = _rewards(row)
    return PreferencePair(
        prompt,
        chosen,
        rejected,
        reward_margin=margin,
        row=row.number,
        gold=gold,
        chosen_uncertainty=_bounded(row, "chosen_uncertainty", partner="rejected_uncertainty"),
        rejected_uncertainty=_bounded(row, "rejected_uncertainty", partner="chosen_uncertainty"),
        semantic_distance=_bounded(row, "semantic_distance", most=2.0),
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        weight=_bounded(row, "weight"),
        options=_options(row, prompt),
        id=_name(row, "id"),
        source=_name(row, "source"),
    )


def _parse_list(row: RawRow) -> ResponseList:
    prompt = _content(row, "prompt")
    for field in ("responses", "scores"):
        if not isinstance(row[field], list):
            row.refuse(field, f"must be a list, got {type(row[field]).__name__}")
    count = len(row["responses"])
    if not 2 <= count <= MAX_RESPONSES:
        row.refuse("responses", f"must be 2 to {MAX_RESPONSES} responses, got {count}")
    if len(row["scores"]) != count:
        row.refuse("scores", f"must be one per response, {count}, got {len(row['scores'])}")
    contents = {
        f"responses[{i}]": read_content(each, f"responses[{i}]", row) for i, each in enumerate(row["responses"])
    }
    _check_one_sort(row, prompt=prompt, **contents)
    for field, content in contents.items():
        _check_response(content, field, row)
    if len(set(contents.values())) < count:
        row.refuse("responses", "has the same response twice")
    numbers = tuple(_finite(score, f"scores[{i}]", row) for i, score in enumerate(row["scores"]))
    if len(set(numbers)) == 1:
        row.refuse("scores", "are all the same: the list says nothing")
    return ResponseList(
        prompt,
        tuple(contents.values()),
        numbers,
        row=row.number,
        weight=_bounded(row, "weight"),
        options=_options(row, prompt),
        id=_name(row, "id"),
        source=_name(row, "source"),
    )


def _parse_completion(row: RawRow) -> Completion:
    prompt, completion = _content(row, "prompt"), _content(row, "completion")
    _check_one_sort(row, prompt=prompt, completion=completion)
    _check_response(completion, "completion", row)
    _refuse_weight(row)
    options, names = _options(row, prompt), (_name(row, "id"), _name(row, "source"))
    return Completion(prompt, completion, row.number, options, *names)


def _parse_prompt(row: RawRow) -> PromptOnly:
    prompt = _content(row, "prompt")
    _refuse_weight(row)
    return PromptOnly(prompt, row.number, _options(row, prompt), _name(row, "id"), _name(row, "source"))


def _content(row: RawRow, field: str) -> Content:
    return read_content(row[field], field, row)


def _options(row: RawRow, prompt: Content) -> ChatOptions:
    options = read_options(row.values.get("tools"), row.values.get("chat_template_kwargs"), row)
    if isinstance(prompt, str) and options != NO_OPTIONS:
        field = "tools" if options.tools else "chat_template_kwargs"
        row.refuse(field, "is for a chat template, and plain text has none: give chat messages, or leave it out")
    return options


def _name(row: RawRow, field: str) -> str | None:
    """A row's name: text, or a whole number as text."""
    value = row.values.get(field)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return read_text(value, field, row)


def _refuse_weight(row: RawRow) -> None:
    if "weight" in row:
        row.refuse("weight", "is for preference pairs and lists: it multiplies their loss")


def _check_one_sort(row: RawRow, **contents: Content) -> None:
    texts = [field for field, content in contents.items() if isinstance(content, str)]
    if texts and len(texts) < len(contents):
        row.refuse(texts[0], f"is text while other fields are messages; make all of {', '.join(contents)} the same")


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
    given = _finite(row["margin"], "margin", row) if "margin" in row else None
    if "chosen_reward" not in row and "rejected_reward" not in row:
        return None, None, given
    for field in ("chosen_reward", "rejected_reward"):
        if field not in row:
            row.refuse(field, "is missing while the other reward is given")
    chosen, rejected = (_finite(row[field], field, row) for field in ("chosen_reward", "rejected_reward"))
    if not math.isfinite(chosen - rejected):
        row.refuse("chosen_reward", "minus rejected_reward is not finite")
    return chosen, rejected, chosen - rejected if given is None else given


def _bounded(row: RawRow, field: str, *, most: float = math.inf, partner: str = "") -> float | None:
    """A number from 0 to `most`; None where it is absent, and so must its partner be."""
    if field not in row:
        if partner in row:
            row.refuse(field, f"is missing while {partner} is given")
        return None
    number = _finite(row[field], field, row)
    if not 0 <= number <= most:
        expected = "at least 0" if most == math.inf else f"in [0, {most:g}]"
        row.refuse(field, f"must be {expected}, got {number}")
    return number


def _finite(value: Any, field: str, row: RawRow) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        row.refuse(field, f"must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        row.refuse(field, f"must be finite, got {number}")
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
