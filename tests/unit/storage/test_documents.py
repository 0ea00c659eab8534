"""Stored documents: a changed byte is noticed, those of other versions are read or refused by name."""

import json
from dataclasses import dataclass

import pytest

from madpo.errors import CorruptObjectError, MadpoError, UnknownFormatError
from madpo.storage import documents

BODY = {"name": "tiny", "numbers": [1, 0.1, -2.5e-7], "none": None}


def test_a_sealed_document_comes_back_and_is_plain_json_that_says_its_format() -> None:
    data = documents.seal(BODY)

    assert documents.unseal(data, key="k") == BODY
    assert json.loads(data)["format"] == 1
    assert documents.is_sealed(data)


def test_no_changed_bit_and_no_cut_goes_unnoticed() -> None:
    data = documents.seal(BODY)
    damaged = [data[:end] for end in range(len(data))]
    damaged += [
        data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
        for place in range(len(data))
        for bit in range(8)
    ]
    for each in damaged:
        with pytest.raises(CorruptObjectError, match="jobs/1"):
            documents.unseal(each, key="jobs/1")


def test_what_version_0_1_0_wrote_is_read_where_it_wrote_no_digest() -> None:
    data = documents.encode(BODY)

    assert documents.unseal(data, key="k") == BODY
    assert not documents.is_sealed(data)
    with pytest.raises(CorruptObjectError):
        documents.unseal(data, key="k", sealed_always=True)


def test_a_newer_format_is_refused_by_name_and_number_by_readers_that_do_not_know_it() -> None:
    data = documents.seal(BODY, version=3)

    assert documents.unseal(data, key="k", newest=3) == BODY
    with pytest.raises(UnknownFormatError, match=r"jobs/1 has format 3.*up to 2: upgrade madpo"):
        documents.unseal(data, key="jobs/1", newest=2)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (KeyError("kind"), CorruptObjectError),
        (TypeError("no number"), CorruptObjectError),
        (ValueError("'x' is not a valid JobKind"), UnknownFormatError),
    ],
)
def test_fields_that_are_not_as_they_should_name_their_document(mistake: Exception, error: type[MadpoError]) -> None:
    with pytest.raises(error, match="jobs/1"), documents.reading("jobs/1"):
        raise mistake


def test_fields_of_a_newer_version_are_passed_over() -> None:
    @dataclass
    class Pin:
        caller: str
        time: float = 0.0

    assert documents.known_fields(Pin, {"caller": "a", "reason": "new"}) == {"caller": "a"}
