import math

import pytest

from madpo.data.records import MAX_REPORTED_ROWS, parse_row, parse_rows, row_kind
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import Completion, DatasetKind, Message, PreferencePair, PromptOnly, ResponseList

TEXT_PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
LIST = {"prompt": "2+2?", "responses": ["4", "5", "four"], "scores": [1, -0.5, 0.25]}
USER = {"role": "user", "content": "2+2?"}


def assistant(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def test_a_text_pair_is_taken_as_it_stands_and_other_columns_are_ignored() -> None:
    row = {"prompt": " a ", "chosen": "b\r\n", "rejected": "c", "origin": {"x": [1]}, "margin": None}

    assert parse_row(row, 3) == PreferencePair(" a ", "b\r\n", "c", row=3)


def test_messages_become_turns() -> None:
    row = {"prompt": [USER], "chosen": assistant("4"), "rejected": assistant("5")}

    parsed = parse_row(row, 1)

    assert isinstance(parsed, PreferencePair)
    assert parsed.prompt == (Message("user", "2+2?"),)
    assert parsed.rejected == (Message("assistant", "5"),)


def test_the_shape_decides_the_kind() -> None:
    rows = [TEXT_PAIR, LIST, {"prompt": "", "completion": "hello"}, {"prompt": "hello", "completion": None}]

    parsed = [parse_row(row, 1) for row in rows]

    assert [type(row) for row in parsed] == [PreferencePair, ResponseList, Completion, PromptOnly]
    assert [row_kind(row) for row in parsed] == list(DatasetKind)


def test_a_list_keeps_its_responses_with_their_scores() -> None:
    parsed = parse_row({"prompt": [USER], "responses": [assistant("4"), assistant("5")], "scores": [0, 2]}, 3)

    assert parsed == ResponseList(
        (Message("user", "2+2?"),), ((Message("assistant", "4"),), (Message("assistant", "5"),)), (0.0, 2.0), row=3
    )
    assert parse_row(LIST, 1) == ResponseList("2+2?", ("4", "5", "four"), (1.0, -0.5, 0.25), row=1)


def test_a_pair_takes_along_what_some_methods_need() -> None:
    notes = {"gold": "four", "chosen_uncertainty": 0, "rejected_uncertainty": 0.5, "semantic_distance": 2}

    assert parse_row(TEXT_PAIR | notes, 1) == PreferencePair("2+2?", "4", "5", row=1, **notes)


@pytest.mark.parametrize(
    ("extra", "margin"),
    [
        ({"margin": 1.5}, 1.5),
        ({"margin": -2}, -2.0),
        ({"chosen_reward": 1.0, "rejected_reward": 3.5}, -2.5),
        ({"margin": 7.0, "chosen_reward": 1.0, "rejected_reward": 3.5}, 7.0),
        ({}, None),
    ],
)
def test_a_margin_is_given_or_follows_from_the_two_rewards(extra: dict[str, float], margin: float | None) -> None:
    parsed = parse_row(TEXT_PAIR | extra, 1)

    assert isinstance(parsed, PreferencePair)
    assert parsed.reward_margin == margin


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ([1], "", "must be an object"),
        ("text", "", "must be an object"),
        ({}, "", "has no column that says what it is"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, ".prompt", "is null"),
        ({"prompt": "a", "chosen": "b"}, ".rejected", "is missing"),
        ({"prompt": "a", "rejected": "b"}, ".chosen", "is missing"),
        (TEXT_PAIR | {"completion": "4"}, ".completion", "is left over by explicit-text (chosen, prompt, rejected)"),
        (TEXT_PAIR | {"prompt": 7}, ".prompt", "must be text or a list of messages, got int"),
        (TEXT_PAIR | {"prompt": {"role": "user", "content": "x"}}, ".prompt", "got dict"),
        (TEXT_PAIR | {"chosen": " \n"}, ".chosen", "is empty"),
        (TEXT_PAIR | {"rejected": ""}, ".rejected", "is empty"),
        ({"prompt": "a", "completion": "\t"}, ".completion", "is empty"),
        (TEXT_PAIR | {"rejected": "4"}, ".rejected", "same as chosen"),
        (TEXT_PAIR | {"prompt": []}, ".prompt", "has no messages"),
        ({"prompt": [USER], "completion": []}, ".completion", "has no messages"),
        ({"prompt": ["hi"]}, ".prompt[0]", "must be an object"),
        ({"prompt": [USER, {"role": "robot", "content": "x"}]}, ".prompt[1].role", "'robot'"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, ".prompt[0].role", "must be one of"),
        ({"prompt": [{"content": "x"}]}, ".prompt[0].role", "must be one of"),
        ({"prompt": [{"role": "user", "content": None}]}, ".prompt[0].content", "must be text, got NoneType"),
        ({"prompt": [USER | {"audio": {}}]}, ".prompt[0]", "a field a message cannot carry here: 'audio'"),
        (TEXT_PAIR | {"chosen": assistant("4"), "rejected": assistant("5")}, ".prompt", "is text while other"),
        ({"prompt": [USER], "completion": "4"}, ".completion", "is text while other"),
        ({"prompt": [USER], "completion": [USER]}, ".completion[0].role", "must be assistant"),
        ({"prompt": [USER], "completion": assistant("  ")}, ".completion", "is empty"),
        (TEXT_PAIR | {"margin": math.nan}, ".margin", "must be finite"),
        (TEXT_PAIR | {"margin": -math.inf}, ".margin", "must be finite"),
        (TEXT_PAIR | {"margin": 10**400}, ".margin", "must be finite"),
        (TEXT_PAIR | {"margin": True}, ".margin", "must be a number, got bool"),
        (TEXT_PAIR | {"margin": "1.0"}, ".margin", "must be a number, got str"),
        (TEXT_PAIR | {"chosen_reward": 1.0}, ".rejected_reward", "is missing while the other reward is given"),
        (TEXT_PAIR | {"chosen_reward": 1e308, "rejected_reward": -1e308}, ".chosen_reward", "not finite"),
        (TEXT_PAIR | {"gold": " "}, ".gold", "is empty"),
        (TEXT_PAIR | {"gold": assistant("4")}, ".prompt", "is text while other"),
        (TEXT_PAIR | {"chosen_uncertainty": 1.0}, ".rejected_uncertainty", "is missing while chosen_uncertainty"),
        (TEXT_PAIR | {"rejected_uncertainty": 1.0}, ".chosen_uncertainty", "is missing while rejected_uncertainty"),
        (TEXT_PAIR | {"chosen_uncertainty": -1, "rejected_uncertainty": 1}, ".chosen_uncertainty", "at least 0"),
        (TEXT_PAIR | {"semantic_distance": 2.5}, ".semantic_distance", "must be in [0, 2], got 2.5"),
        (
            TEXT_PAIR | LIST,
            "",
            "could be explicit-text (chosen, prompt, rejected) or scored-list (prompt, responses, scores)",
        ),
        (LIST | {"scores": None}, ".scores", "is missing"),
        (LIST | {"responses": "4"}, ".responses", "must be a list, got str"),
        (LIST | {"responses": ["4"]}, ".responses", "must be 2 to 64 responses, got 1"),
        (LIST | {"responses": ["4"] * 65}, ".responses", "must be 2 to 64 responses, got 65"),
        (LIST | {"scores": [1, 2]}, ".scores", "must be one per response, 3, got 2"),
        (LIST | {"scores": [1, 1, 1]}, ".scores", "are all the same"),
        (LIST | {"scores": [1, None, 2]}, ".scores[1]", "must be a number, got NoneType"),
        (LIST | {"responses": ["4", 5, "6"]}, ".responses[1]", "must be text or a list of messages, got int"),
        (LIST | {"responses": ["4", "5", "4"]}, ".responses", "the same response twice"),
        (LIST | {"responses": ["4", assistant("5"), "6"]}, ".prompt", "is text while other"),
        (LIST | {"responses": ["4", "5", ""]}, ".responses[2]", "is empty"),
        (TEXT_PAIR | {"prompt": "half \ud83d"}, ".prompt", "half a surrogate pair at position 5"),
        (TEXT_PAIR | {"chosen": "a\0b"}, ".chosen", "NUL character at position 1"),
        ({"prompt": [{"role": "user", "content": "\udc00"}]}, ".prompt[0].content", "surrogate"),
    ],
)
def test_an_unusable_row_is_refused_by_number_field_and_reason(value: object, field: str, reason: str) -> None:
    with pytest.raises(InvalidPairError) as caught:
        parse_row(value, 12)

    (violation,) = caught.value.violations
    assert violation.field == f"row 12{field}"
    assert reason in violation.description
    str(caught.value).encode()


def test_a_good_file_comes_through_in_order() -> None:
    values = [(row, {"prompt": str(row)}) for row in (1, 2, 5)]

    assert [row.row for row in parse_rows(iter(values))] == [1, 2, 5]


def test_all_unusable_rows_are_named_in_one_error_and_nothing_follows_the_first() -> None:
    values = [(1, TEXT_PAIR), (2, {"prompt": 1}), (3, TEXT_PAIR), (4, {"prompt": "a"}), (5, TEXT_PAIR | {"chosen": ""})]
    given = []

    with pytest.raises(InvalidArgumentError, match=r"3 unusable rows, first row 2\.prompt") as caught:
        given.extend(parse_rows(iter(values)))

    assert not isinstance(caught.value, InvalidPairError)
    assert [violation.field for violation in caught.value.violations] == ["row 2.prompt", "row 4", "row 5.chosen"]
    assert "is a prompt row while row 1 is a preference row" in caught.value.violations[1].description


def test_a_file_of_rubbish_is_given_up_after_a_few_rows() -> None:
    values = iter([(row, None) for row in range(1, 1000)])

    with pytest.raises(InvalidArgumentError, match="at least 20 unusable rows") as caught:
        list(parse_rows(values))

    assert len(caught.value.violations) == MAX_REPORTED_ROWS
    assert next(values) == (MAX_REPORTED_ROWS + 1, None)


def test_a_file_without_rows_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no rows"):
        list(parse_rows(iter([])))
