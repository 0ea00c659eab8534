"""The page about models says what the tests do."""

from tests.families.catalogue import CAUSAL, ENCODERS
from tests.families.table import COLUMNS, PAGE, cells_with_tests, with_tables

REWARD_COLUMNS = {"reward", "reward LoRA"}


def test_the_committed_tables_are_the_generated_ones():
    assert with_tables(PAGE.read_text()) == PAGE.read_text(), "run `make docs`"


def test_every_family_goes_through_every_flow_that_it_can():
    cells = cells_with_tests()

    for family in CAUSAL:
        without = set() if family.has_classifier else REWARD_COLUMNS
        assert {column for name, column in cells if name == family.name} == set(COLUMNS) - without
    for family in ENCODERS:
        assert {column for name, column in cells if name == family.name} == {
            *REWARD_COLUMNS,
            "merged",
            "files",
            "transformers",
        }
