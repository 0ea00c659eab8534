"""Rows of uploaded files to domain values. This is the only door for training text: what passes here is usable.

One function per shape; the shape is recognised row by row from the columns that are present, never from the first row:

    prompt, chosen, rejected      a preference pair; optional `margin`, or `chosen_reward` with `rejected_reward`; and
                                  `gold`, `chosen_uncertainty` with `rejected_uncertainty`, `semantic_distance`
    prompt, responses, scores     a list of responses, one score each, higher is better
    prompt, completion            a completion
    prompt                        a prompt alone

Each text is a string, or a list of chat messages `{"role", "content"}`; within a row all are of one sort. A column
holding null is absent; columns not named above are ignored. Nothing is repaired: a wrong row is refused by its number.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from madpo.errors import FieldViolation, InvalidArgumentError, InvalidPairError
from madpo.types import Completion, Content, DatasetKind, DatasetRow, Message, PreferencePair, PromptOnly, ResponseList

ROLES = ("system", "user", "assistant", "tool")

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
    present = {column: value[column] for column in COLUMNS if value.get(column) is not None}
    return _recognise(present, row)(present, row)


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


def refuse(row: int, field: str, reason: str) -> NoReturn:
    """Raise the InvalidPairError of a row; `field` is empty when the whole row is meant."""
    name = f"row {row}.{field}" if field else f"row {row}"
    raise InvalidPairError(f"{name}: {reason}", [FieldViolation(name, reason)])


Parser = Callable[[Mapping[str, Any], int], DatasetRow]


def _recognise(present: Mapping[str, Any], row: int) -> Parser:
    shapes: list[tuple[Parser, tuple[str, ...]]] = [
        (_parse_pair, ("chosen", "rejected")),
        (_parse_list, ("responses", "scores")),
        (_parse_completion, ("completion",)),
    ]
    found = [(parse, columns) for parse, columns in shapes if any(column in present for column in columns)]
    if len(found) > 1:
        given = ", or ".join(" and ".join(columns) for _, columns in found)
        refuse(row, found[-1][1][0], f"give {given}, not both")
    return found[0][0] if found else _parse_prompt


def _parse_pair(present: Mapping[str, Any], row: int) -> PreferencePair:
    prompt, chosen, rejected = (_content(present, field, row) for field in ("prompt", "chosen", "rejected"))
    _check_one_sort(row, prompt=prompt, chosen=chosen, rejected=rejected)
    _check_response(chosen, "chosen", row)
    _check_response(rejected, "rejected", row)
    if chosen == rejected:
        refuse(row, "rejected", "is the same as chosen: the pair says nothing")
    gold = _content(present, "gold", row) if "gold" in present else None
    if gold is not None:
        _check_one_sort(row, prompt=prompt, gold=gold)
        _check_response(gold, "gold", row)
    return PreferencePair(
        prompt,
        chosen,
        rejected,
        reward_margin=_reward_margin(present, row),
        row=row,
        gold=gold,
        chosen_uncertainty=_bounded(present, "chosen_uncertainty", row, partner="rejected_uncertainty"),
        rejected_uncertainty=_bounded(present, "rejected_uncertainty", row, partner="chosen_uncertainty"),
        semantic_distance=_bounded(present, "semantic_distance", row, most=2.0),
    )


def _parse_list(present: Mapping[str, Any], row: int) -> ResponseList:
    prompt = _content(present, "prompt", row)
    for field in ("responses", "scores"):
        if field not in present:
            refuse(row, field, "is missing")
        if not isinstance(present[field], list):
            refuse(row, field, f"must be a list, got {type(present[field]).__name__}")
    count = len(present["responses"])
    if not 2 <= count <= MAX_RESPONSES:
        refuse(row, "responses", f"must be 2 to {MAX_RESPONSES} responses, got {count}")
    if len(present["scores"]) != count:
        refuse(row, "scores", f"must be one per response, {count}, got {len(present['scores'])}")
    responses = {f"responses[{i}]": response for i, response in enumerate(present["responses"])}
    contents = {field: _content(responses, field, row) for field in responses}
    _check_one_sort(row, prompt=prompt, **contents)
    for field, content in contents.items():
        _check_response(content, field, row)
    if len(set(contents.values())) < count:
        refuse(row, "responses", "has the same response twice")
    scores = {f"scores[{i}]": score for i, score in enumerate(present["scores"])}
    numbers = tuple(_finite(scores, field, row) for field in scores)
    if len(set(numbers)) == 1:
        refuse(row, "scores", "are all the same: the list says nothing")
    return ResponseList(prompt, tuple(contents.values()), numbers, row=row)


def _parse_completion(present: Mapping[str, Any], row: int) -> Completion:
    prompt, completion = _content(present, "prompt", row), _content(present, "completion", row)
    _check_one_sort(row, prompt=prompt, completion=completion)
    _check_response(completion, "completion", row)
    return Completion(prompt, completion, row=row)


def _parse_prompt(present: Mapping[str, Any], row: int) -> PromptOnly:
    return PromptOnly(_content(present, "prompt", row), row=row)


def _content(present: Mapping[str, Any], field: str, row: int) -> Content:
    if field not in present:
        refuse(row, field, "is missing")
    value = present[field]
    if isinstance(value, str):
        return _text(value, field, row)
    if isinstance(value, list):
        if not value:
            refuse(row, field, "has no messages")
        return tuple(_message(turn, f"{field}[{index}]", row) for index, turn in enumerate(value))
    refuse(row, field, f"must be text or a list of messages, got {type(value).__name__}")


def _message(turn: Any, field: str, row: int) -> Message:
    if not isinstance(turn, Mapping):
        refuse(row, field, f"must be an object with role and content, got {type(turn).__name__}")
    unread = sorted(str(key) for key, part in turn.items() if part is not None and key not in ("role", "content"))
    if unread:
        # Leaving out a tool call or a name would train on another conversation than the one given.
        refuse(row, field, f"has a field a message cannot carry here: {unread[0]!r:.60}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        refuse(row, f"{field}.role", f"must be one of {', '.join(ROLES)}, got {role!r:.60}")
    if not isinstance(content, str):
        refuse(row, f"{field}.content", f"must be text, got {type(content).__name__}")
    return Message(role, _text(content, f"{field}.content", row))


def _text(value: str, field: str, row: int) -> str:
    if "\0" in value:
        refuse(row, field, f"has a NUL character at position {value.index(chr(0))}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        refuse(row, field, f"has half a surrogate pair at position {error.start}: not Unicode text")
    return value


def _check_one_sort(row: int, **contents: Content) -> None:
    texts = [field for field, content in contents.items() if isinstance(content, str)]
    if texts and len(texts) < len(contents):
        refuse(row, texts[0], f"is text while other fields are messages; make all of {', '.join(contents)} the same")


def _check_response(content: Content, field: str, row: int) -> None:
    if isinstance(content, str):
        if not content.strip():
            refuse(row, field, "is empty")
        return
    if content[0].role != "assistant":
        refuse(row, f"{field}[0].role", f"must be assistant in a response, got {content[0].role!r}")
    if not any(turn.content.strip() for turn in content):
        refuse(row, field, "is empty")


def _reward_margin(present: Mapping[str, Any], row: int) -> float | None:
    """`margin` where given, else the difference of the two rewards."""
    if "margin" in present:
        return _finite(present, "margin", row)
    if "chosen_reward" not in present and "rejected_reward" not in present:
        return None
    for field in ("chosen_reward", "rejected_reward"):
        if field not in present:
            refuse(row, field, "is missing while the other reward is given")
    margin = _finite(present, "chosen_reward", row) - _finite(present, "rejected_reward", row)
    if not math.isfinite(margin):
        refuse(row, "chosen_reward", "minus rejected_reward is not finite")
    return margin


def _bounded(
    present: Mapping[str, Any], field: str, row: int, *, most: float = math.inf, partner: str = ""
) -> float | None:
    """A number from 0 to `most`; None where it is absent, and so must its partner be."""
    if field not in present:
        if partner in present:
            refuse(row, field, f"is missing while {partner} is given")
        return None
    number = _finite(present, field, row)
    if not 0 <= number <= most:
        refuse(
            row,
            field,
            f"must be at least 0, got {number}" if most == math.inf else f"must be in [0, {most:g}], got {number}",
        )
    return number


def _finite(present: Mapping[str, Any], field: str, row: int) -> float:
    value = present[field]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(row, field, f"must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        refuse(row, field, f"must be finite, got {number}")
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
