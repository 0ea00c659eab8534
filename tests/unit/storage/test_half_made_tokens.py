"""Token ids that were left half made are removed as given up, and never from under who goes on with them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from madpo.data.encode import EncodedRow
from madpo.errors import FailedPreconditionError, UnavailableError
from madpo.storage import keys, tokens
from madpo.storage.listing import list_unfinished
from madpo.storage.local import LocalStore
from madpo.storage.tokens import TokenStore
from madpo.storage.withdrawals import withdraw_unfinished

DATASET = "dataset-" + "1" * 32
ROWS = [EncodedRow(n + 1, [n], ([n], [n + 1]), ()) for n in range(6)]


class HalfMade:
    """Two parts of two rows each, and who collects what was given up."""

    def __init__(self, directory: Path, tokenizer: Any) -> None:
        self.store, self.tokenizer, self.directory = LocalStore(directory / "store"), tokenizer, directory
        self.tokens = TokenStore(self.store)

        def rows() -> Iterator[EncodedRow]:
            yield from ROWS[:4]
            raise InterruptedError

        with pytest.raises(InterruptedError):
            self.write(rows(), first=0)

    def write(self, rows: Any, *, first: int) -> None:
        self.tokens.write(DATASET, self.tokenizer, rows, scratch=self.directory / "scratch", first=first)

    def rows_kept(self) -> int:
        return self.tokens.rows_kept(DATASET, self.tokenizer)

    def given_up(self) -> dict[str, float]:
        """When the last file was written, by prefix."""
        found = list_unfinished(self.store, keys.TOKENS)
        return {prefix: max(info.modified_time for info in infos) for prefix, infos in found.items()}

    def require_whole(self) -> None:
        assert list(self.tokens.read(DATASET, self.tokenizer)) == ROWS
        assert not [info.key for info in self.store.list("tokens/") if info.key.endswith("/held")]
        assert self.given_up() == {}


@pytest.fixture
def half_made(tmp_path: Path, make_toy_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> HalfMade:
    monkeypatch.setattr(tokens, "_PART_ROWS", 2)
    return HalfMade(tmp_path, make_toy_tokenizer())


def test_what_was_left_half_made_is_gone_on_with(half_made: HalfMade) -> None:
    assert half_made.rows_kept() == 4
    half_made.write(ROWS[4:], first=4)
    half_made.require_whole()


def test_who_goes_on_before_it_is_removed_keeps_it(half_made: HalfMade) -> None:
    ((prefix, written_time),) = half_made.given_up().items()
    while time.time() <= written_time:  # the clock of files may be coarse
        time.sleep(0.01)
    kept = half_made.rows_kept()

    with pytest.raises(FailedPreconditionError, match="has newer files"):
        withdraw_unfinished(half_made.store, prefix, before=written_time)

    assert kept == 4
    half_made.write(ROWS[4:], first=kept)
    half_made.require_whole()


@pytest.mark.parametrize("asks_first", [True, False])
def test_who_goes_on_while_it_is_removed_waits_and_makes_all_of_it(half_made: HalfMade, asks_first: bool) -> None:
    ((prefix, written_time),) = half_made.given_up().items()
    withdrawal = withdraw_unfinished(half_made.store, prefix, before=written_time)

    def make() -> None:
        kept = half_made.rows_kept() if asks_first else 0
        assert kept == 0
        half_made.write(ROWS, first=0)

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make)
        deadline = time.monotonic() + 60
        while half_made.store.head(keys.held(prefix)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not made.done()
        withdrawal.remove()
        made.result()

    half_made.require_whole()


def test_rows_that_were_kept_and_are_gone_are_missed(half_made: HalfMade) -> None:
    kept = half_made.rows_kept()
    half_made.tokens.delete(DATASET, half_made.tokenizer)

    with pytest.raises(UnavailableError, match="that were kept are gone"):
        half_made.write(ROWS[4:], first=kept)
