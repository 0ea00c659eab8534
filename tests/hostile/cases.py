"""Files that must be refused, made by functions: each with the row and field that the refusal has to name."""

from itertools import chain

from tests.hostile.case import Case
from tests.hostile.file_cases import array_cases, compression_cases, csv_cases, empty_cases, size_cases
from tests.hostile.row_cases import (
    json_cases,
    long_cases,
    message_cases,
    number_cases,
    row_cases,
    text_cases,
    type_cases,
)
from tests.hostile.table_cases import arrow_cases, parquet_cases


def all_cases() -> list[Case]:
    """Every case, names being unique."""
    makers = (
        text_cases,
        json_cases,
        type_cases,
        message_cases,
        long_cases,
        number_cases,
        row_cases,
        size_cases,
        array_cases,
        csv_cases,
        parquet_cases,
        arrow_cases,
        compression_cases,
        empty_cases,
    )
    return list(chain.from_iterable(make() for make in makers))
