"""Which form a row has: by the row alone, or refused by name."""

import os
import subprocess
import sys
from typing import Any

import pytest

from madpo.data.forms.registry import FORMS
from madpo.data.records import RowReader, parse_rows
from madpo.errors import InvalidArgumentError, InvalidPairError
from madpo.types import Completion, DatasetForm, Message, PreferencePair, ResponseList

pytestmark = pytest.mark.data

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
ASKED, SAID, OTHER = (Message(turn["role"], turn["content"]) for turn in (USER, GOOD, BAD))
TEXT = {"prompt": "q", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def read(row: dict[str, Any], **how: Any) -> Any:
    (parsed,) = RowReader(**how).read(row, 3)
    return parsed


def refusal(row: dict[str, Any], **how: Any) -> tuple[str, str]:
    with pytest.raises(InvalidPairError) as caught:
        RowReader(**how).read(row, 3)
    (violation,) = caught.value.violations
    return violation.field, violation.description


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (TEXT | {"question": "q"}, "", "could be explicit-text (chosen, prompt, rejected) or intel (chosen, question,"),
        (TEXT | {"chosen_response": "a", "rejected_response": "b"}, "", "or nemo-aligner (chosen_response, prompt,"),
        (TEXT | {"conversations": [USER]}, "", "or sharegpt (chosen, conversations, rejected): say which columns"),
        ({"instruction": "q", "input": "", "prompt": "q", "chosen": "a", "rejected": "b"}, "", "or explicit-text"),
        (TEXT | {"context": "q"}, ".context", "is left over by explicit-text"),
        ({"question": "q", "chosen": "a"}, ".rejected", "is missing for intel (chosen, question, rejected)"),
        ({"preferred_output": [GOOD], "input": {"messages": [USER]}}, ".non_preferred_output", "missing for openai"),
        ({"context": [USER], "completion": "a"}, ".prompt", "is missing for completion"),
        (
            {"prompt": "p", "chosn": "a", "rejected": "b", "n": 1},
            ".chosen",
            "is missing for explicit-chat or explicit-text or full-conversations (chosen, prompt, rejected)"
            "; not read: chosn, n; is chosn meant?",
        ),
        ({"prompt": "q", "answers": []}, ".answers", "must be 2 to 64 responses, got 0"),
        ({"prompt": "q", "completions": "a"}, ".completions", "is it the completion? (--map completion=completions)"),
        (
            {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]},
            ".completions",
            "with a column of scores --map responses=completions",
        ),
        ({"prompt": "q", "completions": ["a", "b"]}, ".completions", "without, give chosen and rejected"),
        (
            {"prompt": "q", "completions": [{"completion": "a", "rank": 0}, {"completion": "b", "rank": 1}]},
            ".completions",
            "as nemo-rl has them: is prompt that one? (--map context=prompt)",
        ),
        ({"messages": [USER], "chosen": GOOD}, ".rejected", "is missing for sharegpt-messages"),
        ({"messages": [USER]}, ".messages", "has no turn of an assistant: there is nothing to learn"),
        ({"messages": [GOOD, USER, GOOD]}, ".messages[0]", "is an assistant's turn"),
        ({"messages": [USER, GOOD], "prompt": "else"}, ".prompt", "is not what a user says in messages"),
        ({"conversations": []}, ".conversations", "must be a list of turns, at least one"),
        ({"conversations": [{"from": "human", "value": "q"}]}, ".conversations", "has no turn of an assistant"),
        ({"text": ["hello"]}, ".text", "must be text, got list"),
        ({"text": " "}, ".text", "is empty"),
        ({"system": "s", "text": "hello"}, ".system", "cannot stand before a prompt"),
        ({"body": "hello", "n": 1}, "", "; not read: body, n; is body meant? (--map text=body)"),
        (
            {"query": "q", "Response": "a"},
            "",
            "are query and Response meant? (--map prompt=query --map completion=Resp",
        ),
        ({"promt": "q", "chosen": "a", "rejected": "b"}, ".rejected", "shares no whole word"),
        (
            {"prompt": "q", "chosen": "a", "rejectd": "b"},
            ".rejected",
            "rejectd; is rejectd meant? (--map rejected=rejectd)",
        ),
        (TEXT | {"images": ["x"]}, ".images", "holds images, which models here do not read"),
        ({"prompt": "q", "completion": "a", "label": True}, ".completion", "marks single completions"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, ".completions", "marks the steps of a completion"),
        ({"chosen_ids": [1], "rejected_ids": [2]}, ".chosen_ids", "holds token ids"),
        (TEXT | {"ref_chosen_logps": -1.0}, ".ref_chosen_logps", "holds log-probabilities"),
        ({"chosen": "q a", "rejected": "q b", "prompt": None}, ".prompt", "is null (to take the prompt from the resp"),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD], "question": None},
            ".question",
            "implicit-chat, leave question",
        ),
        ({"chosen": "yes", "rejected": "no"}, ".rejected", "shares no whole word with chosen"),
        ({"chosen": "a b", "rejected": "a b"}, ".rejected", "is the same as chosen"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, ".rejected", "is the same as chosen"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, ".rejected", "shares no turns with chosen that an assistant"),
        ({"chosen": [USER, GOOD], "rejected": [BAD, GOOD]}, ".rejected", "shares no turns"),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER | {"content": "p"}, BAD]},
            ".rejected[2]",
            "parts from chosen in a turn of user",
        ),
        ({"chosen": [USER, GOOD], "rejected": "q b"}, ".rejected", "must be a list of messages, got str"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
            ".rejected",
            "no turns",
        ),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER | {"content": "p"}, BAD]}, ".rejected", "no turns"),
        ({"prompt": "p", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ".prompt", "is not what a user says"),
        (
            {"prompt": [BAD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            ".chosen",
            "does not go on from the turns",
        ),
        (
            {"prompt": "hello", "answers": [{"answer": "a", "rank": 1}] * 2},
            ".prompt",
            "must begin with a turn of Human",
        ),
        (
            {"prompt": "\n\nHuman: q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
            ".prompt",
            "must end where Assistant is to answer",
        ),
        ({"context": "q", "completions": ["a", "b"]}, ".completions[0]", "must be an object, got str"),
        ({"context": "q", "completions": [{"completion": "a"}] * 2}, ".completions[0].rank", "must be a number"),
        (
            {"context": "q", "completions": [{"completion": "a", "rank": 1}, {"completion": "b", "rank": 1}]},
            ".completions",
            "are all the same",
        ),
        ({"input": "q", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, ".input", "must be an object with"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [USER]},
            ".non_preferred_output[0].role",
            "must be assistant in a response",
        ),
        (
            {"input": {"messages": [USER], "tools": [{"name": "f"}]}, "tools": "[]", "preferred_output": [GOOD]}
            | {"non_preferred_output": [BAD]},
            ".tools",
            "is given, and so is input.tools",
        ),
        (
            {"conversations": [{"from": "human"}], "chosen": {}, "rejected": {}},
            ".conversations[0].value",
            "must be text",
        ),
        ({"conversations": [USER], "chosen": {}, "rejected": {}}, ".conversations[0]", "cannot carry here: 'content'"),
        (
            {"conversations": [{"from": "bot", "value": ""}], "chosen": {}, "rejected": {}},
            ".conversations[0].from",
            "must be one of system, human, user, gpt, assistant, observation, tool, function_call, got 'bot'",
        ),
        ({"instruction": "q", "history": [["a"]], "chosen": "a", "rejected": "b"}, ".history[0]", "what was asked and"),
        (TEXT | {"system": 1}, ".system", "must be text, got int"),
        ({"chosen": "q a", "rejected": "q b", "system": "s"}, ".system", "cannot stand before a prompt that the resp"),
        (
            CHAT | {"prompt": [{"role": "system", "content": "t"}, USER], "system": "s"},
            ".system",
            "is another system prompt than the one the messages begin with",
        ),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "margin": 1}, ".margin", "for preference pairs"),
        (TEXT | {"score_chosen": 1.0, "chosen_reward": 2.0}, ".chosen_reward", "is read as chosen_reward, and so is"),
    ],
)
def test_a_row_that_no_one_form_fits_is_refused_by_name(row: dict[str, Any], field: str, reason: str) -> None:
    found, description = refusal(row)

    assert (found, reason in description) == (f"row 3{field}", True), (found, description)


def test_the_system_column_is_the_first_turn_and_makes_texts_a_chat() -> None:
    system = Message("system", "s")

    assert read(TEXT | {"system": "s"}) == PreferencePair((system, ASKED), (SAID,), (OTHER,), row=3)
    assert read(CHAT | {"system": "s"}) == read(TEXT | {"system": "s"})
    assert read(CHAT | {"prompt": [{"role": "system", "content": "s"}, USER], "system": "s"}).prompt == (system, ASKED)
    assert read(TEXT | {"system": " "}) == read(CHAT) != read(TEXT) == read(TEXT | {"system": None})
    assert read({"prompt": "q", "completion": "a", "system": "s"}) == Completion((system, ASKED), (SAID,), row=3)


@pytest.mark.parametrize("alias", ["score_{}", "{}_score", "{}_reward"])
def test_rewards_go_by_several_names(alias: str) -> None:
    pair = read(TEXT | {alias.format("chosen"): 7.5, alias.format("rejected"): 4})

    assert (pair.chosen_reward, pair.rejected_reward, pair.reward_margin) == (7.5, 4.0, 3.5)


def test_a_mapping_overrides_and_leaves_unread() -> None:
    row = {"q": "q", "prompt": 5, "best": "a", "worst": "b", "score": 2, "weight": "heavy", "question": "?"}
    columns = {"prompt": "q", "chosen": "best", "rejected": "worst", "margin": "score", "weight": "", "question": ""}
    reader = RowReader(columns)

    assert reader.read(row, 3) == [PreferencePair("q", "a", "b", reward_margin=2.0, row=3)]
    reader.finish()
    assert reader.forms() == (
        DatasetForm("explicit-text", 1, {"chosen": "best", "margin": "score", "prompt": "q", "rejected": "worst"}),
    )
    assert refusal({"best": "a"}, columns=columns) == (
        "row 3.worst",
        "is missing for hh-rlhf or implicit-chat or implicit-text (chosen, rejected)",
    )
    assert refusal(row | {"best": 1}, columns=columns) == ("row 3.best", "must be text or a list of messages, got int")


def test_one_of_two_forms_is_chosen_by_leaving_columns_unread() -> None:
    row = TEXT | {"question": "p"}

    assert read(row, columns={"question": ""}).prompt == "q"
    assert read(row, columns={"prompt": ""}).prompt == (Message("user", "p"),)
    assert read(row, columns={"prompt": "question"}).prompt == "p"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"promt": "q"}, r"columns\.promt: is no column that is read; columns: answers, .*weight"),
        ({"prompt": "q", "chosen": "q"}, r"columns\.q: is given for two columns"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused_at_once(columns: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        RowReader(columns)


def test_a_mapped_column_that_no_row_has_is_a_mistake() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"columns\.weight: is to be read from 'wieght', a column that no row"
    ):
        list(parse_rows(iter([(1, TEXT)]), RowReader({"weight": "wieght"})))


def test_the_form_does_not_depend_on_the_order_of_keys_or_rows() -> None:
    rows = [TEXT, CHAT, {"question": "q", "chosen": "a", "rejected": "b"}, {"chosen": "q a", "rejected": "q b"}]

    def found(rows: list[dict[str, Any]]) -> Any:
        reader = RowReader()
        parsed = [pair.pair_id for pair in parse_rows(iter(enumerate(rows, start=1)), reader)]
        return sorted(parsed), reader.forms()

    turned = [dict(reversed(row.items())) for row in reversed(rows)]
    assert found(rows) == found(turned)
    assert [form.name for form in found(rows)[1]] == ["explicit-chat", "explicit-text", "implicit-text", "intel"]


@pytest.mark.parametrize(
    ("columns", "source"),
    [
        ({"subset": "hep-rust"}, "hep-rust"),
        ({"subset": "hep-rust", "source": None}, "hep-rust"),
        ({"subset": "hep-rust", "source": "school"}, "school"),
        ({"source": "school", "subset": "hep-rust"}, "school"),
        ({"subset": {"any": "thing"}}, None),
        ({"subset": None}, None),
    ],
)
def test_the_subset_of_a_benchmark_is_the_source_of_its_rows_unless_they_have_one(
    columns: dict[str, Any], source: str | None
) -> None:
    assert [row.source for row in RowReader().read(TEXT | columns, 1)] == [source]
    assert [row.source for row in RowReader({"source": ""}).read(TEXT | columns, 1)] == [None]


def test_the_form_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from madpo.data.records import RowReader\n"
        "for row in [{'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'question': 'q'}, {'prompt': 'q', 'chosen': 'a'},"
        " {'chosen': 1}, {'instruction': 'q', 'input': 'p', 'chosen': 'a', 'rejected': 'b', 'score_chosen': 1}]:\n"
        "    try:\n        print(RowReader().read(row, 1))\n    except Exception as error:\n        print(error)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(outputs) == 1, outputs


RANKED = {
    "context": "q",
    "completions": [{"completion": text, "rank": rank} for text, rank in zip("abcd", (1, 0, 1, 2), strict=True)],
}
SCORED = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, 5, 2], "weight": 0.5}


def test_more_than_two_ranked_responses_need_a_rule() -> None:
    assert refusal(RANKED) == (
        "row 3.completions",
        "ranks 4 responses: say what becomes of lists (lists=pairs, best_worst or keep)",
    )
    two = RANKED | {"completions": RANKED["completions"][:2]}
    assert read(two | {"margin": 1}) == PreferencePair("q", "b", "a", reward_margin=1.0, row=3)
    assert read(SCORED) == ResponseList("q", ("a", "b", "c"), (2.0, 5.0, 2.0), row=3, weight=0.5)


def test_lists_become_pairs_best_first_without_ties() -> None:
    ranked = RowReader(lists="pairs").read(RANKED, 3)

    assert [f"{pair.chosen}{pair.rejected}" for pair in ranked] == ["ba", "bc", "bd", "ad", "cd"]
    assert {(pair.row, pair.reward_margin) for pair in ranked} == {(3, None)}

    scored = RowReader(lists="pairs").read(SCORED, 3)
    assert scored == [
        PreferencePair("q", "b", other, 3.0, row=3, chosen_reward=5.0, rejected_reward=2.0, weight=0.5)
        for other in ("a", "c")
    ]


def test_the_best_goes_against_the_worst_or_the_list_is_kept() -> None:
    assert read(RANKED, lists="best_worst") == PreferencePair("q", "b", "d", row=3)
    assert read(SCORED, lists="best_worst").rejected == "a"
    assert read(RANKED, lists="keep") == ResponseList("q", tuple("abcd"), (-1.0, 0.0, -1.0, -2.0), row=3)


def test_a_file_may_mix_forms_of_one_kind_only() -> None:
    mixed = [(1, TEXT), (2, CHAT), (3, RANKED | {"completions": RANKED["completions"][:2]})]
    assert len(list(parse_rows(iter(mixed)))) == 3

    with pytest.raises(InvalidArgumentError) as caught:
        list(parse_rows(iter([*mixed, (4, SCORED), (5, {"prompt": "q"}), (6, TEXT | {"question": "q"})])))
    assert [violation.field for violation in caught.value.violations] == ["row 4", "row 5", "row 6"]


def test_every_form_says_where_its_parts_come_from() -> None:
    kinds = {"chosen", "responses", "completion", "prompt"}
    assert all(form.reads.keys() & kinds and form.requires for form in FORMS.values())
