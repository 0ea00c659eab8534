"""Rows to tokens: the same one by one, many at a time and in other processes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madpo.data import encoding
from madpo.data.encode import EncodedRow, encode_rows, row_responses
from madpo.data.encoding import RowEncoder
from madpo.data.overlong import POLICIES, fit, length
from madpo.data.tokenize import encode_response
from madpo.data.tokenizer import load_tokenizer
from madpo.errors import InvalidArgumentError, InvalidPairError, UnavailableError
from madpo.jobs.training import Overlong
from madpo.types import Completion, DatasetRow, Message, PreferencePair, PromptOnly, ResponseList

pytestmark = pytest.mark.data

Save = Callable[..., Path]

USER, GOOD, BAD = Message("user", "the film"), Message("assistant", "was good ."), Message("assistant", "was bad")
ROWS: list[DatasetRow] = [
    PreferencePair("the film", "was good", "was bad .", row=1),
    PreferencePair((USER,), (GOOD,), (BAD,), row=2),
    PreferencePair((USER,), (GOOD,), (BAD,), row=3, gold=(Message("assistant", "good good"),)),
    Completion("", "the film </s>", row=4),
    ResponseList("<s> the", ("film", "was", "good bad"), (1.0, 2.0, 3.0), row=5),
    PromptOnly("the film", row=6),
]


def test_many_rows_have_the_tokens_of_each_alone(tokenizer_directory: Save) -> None:
    tokenizer = load_tokenizer(tokenizer_directory())

    encoded = [outcome for outcome, _ in encode_rows(tokenizer, ROWS)]

    for row, outcome in zip(ROWS, encoded, strict=True):
        assert isinstance(outcome, EncodedRow)
        alone = [encode_response(tokenizer, row.prompt, each, row.options) for each in row_responses(row)]
        assert outcome.row == row.row
        assert [(outcome.prompt_ids, ids) for ids in outcome.responses] == [
            (each.prompt_ids, each.response_ids) for each in alone
        ]


def test_worker_processes_give_the_same_in_the_same_order(
    tokenizer_directory: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tokenizer_directory()
    tokenizer, rows = load_tokenizer(directory), [ROWS[index % len(ROWS)] for index in range(400)]
    alone = list(RowEncoder(directory, tokenizer, workers=1).encode(rows))
    monkeypatch.setattr(encoding, "ALONE_ROWS", 3)
    monkeypatch.setattr(encoding, "_CHUNK_ROWS", 16)

    shared = list(RowEncoder(directory, tokenizer, workers=2).encode(rows))

    assert shared == alone
    assert [row for row, _, _ in shared] == rows


def test_an_error_in_a_worker_process_is_raised_here(
    tokenizer_directory: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tokenizer_directory(template=None)
    monkeypatch.setattr(encoding, "ALONE_ROWS", 1)

    with pytest.raises(InvalidArgumentError, match="no chat template"):
        list(RowEncoder(directory, load_tokenizer(directory), workers=2).encode(ROWS[:2]))


def test_a_worker_process_that_dies_ends_the_work(tokenizer_directory: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tokenizer_directory()
    tokenizer = load_tokenizer(directory)
    monkeypatch.setattr(encoding, "ALONE_ROWS", 1)

    with pytest.raises(UnavailableError, match=r"ended \(code 3, its standard error says why\)"):
        list(RowEncoder(directory, tokenizer, examine=_die, workers=2).encode(ROWS[:2]))


def _die(*_: object) -> None:
    if "encode_worker" in sys.argv[0]:  # the first rows are for the process that asks
        os._exit(3)


def test_a_tokenizer_that_a_worker_process_cannot_load_is_told(
    tokenizer_directory: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tokenizer_directory()
    tokenizer = load_tokenizer(directory)
    monkeypatch.setattr(encoding, "ALONE_ROWS", 1)
    (directory / "tokenizer.json").unlink()

    with pytest.raises(InvalidArgumentError, match="has no tokenizer that can be loaded"):
        list(RowEncoder(directory, tokenizer, workers=2).encode(ROWS[:2]))


def test_a_row_the_template_refuses_is_named(tokenizer_directory: Save) -> None:
    tokenizer = load_tokenizer(tokenizer_directory(template="{{ raise_exception('no ' + messages[0]['role']) }}"))

    (outcome, _), (other, _) = encode_rows(tokenizer, ROWS[1:2] + ROWS[:1])

    assert isinstance(outcome, InvalidPairError)
    assert outcome.violations[0].field == "row 2"
    assert "no user" in str(outcome)
    assert isinstance(other, EncodedRow)


ids = st.lists(st.integers(3, 9), max_size=12)


@given(
    prompt=ids.map(lambda rest: [1, *rest]),
    responses=st.lists(ids.map(lambda rest: [*rest, 2]), min_size=1, max_size=3, unique_by=tuple),
    max_tokens=st.integers(2, 16),
    overlong=st.sampled_from(POLICIES),
)
def test_what_is_kept_fits_and_has_something_to_learn_from(
    prompt: list[int], responses: list[list[int]], max_tokens: int, overlong: Overlong
) -> None:
    row = EncodedRow(7, prompt, tuple(responses))

    kept = fit(row, max_tokens, overlong, bos_id=1)

    if length(row) <= max_tokens:
        assert kept is row
    elif overlong in ("error", "drop"):
        assert kept is None
    elif kept is not None:
        assert length(kept) <= max_tokens
        assert kept.prompt_ids
        assert all(kept.responses)
        assert len(set(map(tuple, kept.responses))) == len(responses)
        if overlong == "truncate_prompt":
            assert kept.responses == row.responses
            rest = kept.prompt_ids[1:] if len(kept.prompt_ids) > 1 else kept.prompt_ids
            assert prompt[len(prompt) - len(rest) :] == rest
            assert len(kept.prompt_ids) < 2 or kept.prompt_ids[0] == 1
        else:
            assert kept.prompt_ids == prompt
            assert all(whole[: len(cut)] == cut for whole, cut in zip(responses, kept.responses, strict=True))
    elif overlong == "truncate_prompt":
        assert max(map(len, responses)) >= max_tokens
    else:
        room = max_tokens - len(prompt)
        assert room < 1 or len({tuple(each[:room]) for each in responses}) < len(responses)


def test_truncation_by_hand() -> None:
    row = EncodedRow(1, [1, 3, 4, 5], ([6, 7, 2], [8, 2]))

    assert fit(row, 5, "truncate_prompt", bos_id=1) == EncodedRow(1, [1, 5], ([6, 7, 2], [8, 2]))
    assert fit(row, 5, "truncate_prompt", bos_id=None) == EncodedRow(1, [4, 5], ([6, 7, 2], [8, 2]))
    assert fit(row, 4, "truncate_prompt", bos_id=1) == EncodedRow(1, [5], ([6, 7, 2], [8, 2]))
    assert fit(row, 3, "truncate_prompt", bos_id=1) is None
    assert fit(row, 6, "truncate_response", bos_id=1) == EncodedRow(1, [1, 3, 4, 5], ([6, 7], [8, 2]))
    assert fit(row, 4, "truncate_response", bos_id=1) is None
    assert fit(EncodedRow(1, [1, 3], ([6, 7, 2], [6, 8])), 3, "truncate_response", bos_id=1) is None
