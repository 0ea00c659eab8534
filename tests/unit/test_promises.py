"""The page of promises says what the tests say."""

from types import SimpleNamespace

import pytest

from tests import promises


def test_the_page_is_current() -> None:
    page = promises.PAGE.read_text()
    assert promises.with_table(page) == page, "run `make docs`"


def test_every_promise_is_held_by_something_and_every_mark_names_one() -> None:
    tests = promises.tests_by_promise()
    names = {promise.name for promise in promises.PROMISES}
    assert [promise.name for promise in promises.PROMISES if not promise.seen_by and not tests.get(promise.name)] == []
    assert set(tests) <= names


def test_the_record_has_no_failure_and_no_test_that_is_gone() -> None:
    record = promises.read_record()
    assert [test for test, result in record.items() if result["failed"]] == []
    assert record.keys() <= {test for tests in promises.tests_by_promise().values() for test in tests}


@pytest.mark.parametrize(
    ("outcome", "seen"), [("passed", {"passed": 1, "failed": 0}), ("failed", {"passed": 0, "failed": 1})]
)
def test_what_came_of_a_test_is_kept_with_its_figures(outcome: str, seen: dict[str, int]) -> None:
    report = SimpleNamespace(
        nodeid="tests/unit/test_x.py::test_y[a::b]",
        when="call",
        user_properties=[(promises.PROMISE, "J1"), (promises.FIGURE, "12 kills")],
        **{name: name == outcome for name in ("passed", "failed", "skipped")},
    )
    assert promises.collect([report]) == {"unit/test_x.py::test_y": {**seen, "figures": ["12 kills"]}}
    assert promises.collect([SimpleNamespace(nodeid="x", when="call", user_properties=[], failed=False)]) == {}
