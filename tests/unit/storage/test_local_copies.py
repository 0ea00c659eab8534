import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from madpo.storage import documents, local_copies
from madpo.storage.local_copies import LocalCopies
from tests.damage import DAMAGES

DAY_S = 24 * 3600.0
UNBOUNDED = {"max_bytes": 1 << 40, "max_age_s": 1000 * DAY_S}
HOLD = """
import sys
from pathlib import Path
from madpo.storage.local_copies import LocalCopies
copies = LocalCopies(Path(sys.argv[1]))
copies.fetch("models/1", lambda directory: None)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def make(tmp_path: Path):
    """Makes copies of 100 bytes that were last used so many days ago."""

    def make(*names: str, ages=(), copies: LocalCopies | None = None) -> list[Path]:
        copies = copies or LocalCopies(tmp_path)
        made = [copies.fetch(name, lambda directory: (directory / "file").write_bytes(bytes(100))) for name in names]
        for directory, age in zip(made, ages, strict=False):
            used = time.time() - age * DAY_S
            os.utime(directory.with_name(f".{directory.name}.used"), (used, used))
        return made

    return make


def test_copies_that_fit_stay(tmp_path, make):
    made = make("models/1", "datasets/2")

    LocalCopies(tmp_path).trim(**UNBOUNDED)

    assert all((directory / "file").exists() for directory in made)


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path, make):
    oldest, newest, middle = make("models/1", "tokens/2/3", "models/4", ages=(3, 1, 2))

    LocalCopies(tmp_path).trim(**UNBOUNDED | {"max_bytes": 250})
    assert [directory.exists() for directory in (oldest, middle, newest)] == [False, True, True]

    LocalCopies(tmp_path).trim(**UNBOUNDED | {"max_bytes": 100})
    assert [directory.exists() for directory in (oldest, middle, newest)] == [False, False, True]


def test_a_copy_that_is_asked_for_again_counts_as_used(tmp_path, make):
    first, second = make("models/1", "models/2", ages=(3, 2))
    make("models/1")

    LocalCopies(tmp_path).trim(**UNBOUNDED | {"max_bytes": 100})

    assert (first.exists(), second.exists()) == (True, False)


def test_what_was_not_used_for_long_goes_however_small(tmp_path, make):
    old, new = make("models/1", "models/2", ages=(15, 13))

    LocalCopies(tmp_path).trim(**UNBOUNDED | {"max_age_s": 14 * DAY_S})

    assert (old.exists(), new.exists()) == (False, True)


def test_what_is_in_use_stays_until_it_is_released(tmp_path, make):
    copies = LocalCopies(tmp_path)
    (directory,) = make("models/1", ages=(30,), copies=copies)

    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)
    assert directory.exists()

    copies.release()
    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)
    assert not directory.exists()


def test_what_another_process_uses_stays_until_that_has_ended(tmp_path, make):
    (directory,) = make("models/1")
    user = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "held\n"
        LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)
        assert directory.exists()
    finally:
        user.kill()
        user.communicate()

    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)
    assert not directory.exists()


def test_what_a_killed_process_had_half_made_goes_too(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".1.lock").touch()
    half = tmp_path / "models" / ".1.partial"
    half.mkdir()
    (half / "weights").write_bytes(bytes(100))

    LocalCopies(tmp_path).trim(**UNBOUNDED)
    assert half.exists()

    LocalCopies(tmp_path).trim(**UNBOUNDED | {"max_bytes": 99})
    assert not half.exists()


def test_nothing_is_left_of_what_was_removed(tmp_path, make):
    make("models/1", "tokens/2/3", "tokens/2/4")

    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)

    assert list(tmp_path.iterdir()) == []


def test_what_stands_beside_no_copy_goes_unless_somebody_is_about_to_make_one(tmp_path):
    """As after a fetch that failed, and of versions that left it beside what they removed."""
    for name in ("1", "2"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f".{name}.lock").touch()
    (tmp_path / "models" / ".2.used").touch()
    (tmp_path / "models" / ".3.used").touch()
    seen: list[list[str]] = []

    def look(directory: Path) -> None:
        LocalCopies(tmp_path).trim(**UNBOUNDED)
        seen.append(sorted(path.name for path in directory.parent.iterdir()))

    LocalCopies(tmp_path).fetch("models/1", look)

    assert seen == [[".1.lock", ".1.partial", ".1.used"]]


def test_copies_that_are_removed_and_made_at_once_are_whole_while_they_are_in_use(tmp_path):
    over = threading.Event()

    def trim() -> None:
        while not over.is_set():
            LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)

    def use(number: int) -> None:
        for turn in range(40):
            copies = LocalCopies(tmp_path)
            directory = copies.fetch(
                f"tokens/{(number + turn) % 3}/1", lambda directory: (directory / "file").write_bytes(bytes(100))
            )
            assert (directory / "file").read_bytes() == bytes(100)
            copies.release()

    with ThreadPoolExecutor(6) as pool:
        trimming = [pool.submit(trim) for _ in range(2)]
        using = [pool.submit(use, number) for number in range(4)]
        try:
            for each in using:
                each.result()
        finally:
            over.set()
        for each in trimming:
            each.result()
    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_was_removed_is_made_again(tmp_path, make):
    make("models/1")
    LocalCopies(tmp_path).trim(max_bytes=0, max_age_s=DAY_S)

    (directory,) = make("models/1")

    assert (directory / "file").stat().st_size == 100


@pytest.mark.promise("T3")
@pytest.mark.parametrize("damage", [*DAMAGES, None])
@pytest.mark.parametrize("part", ["model-1/weights", "model-1/tokenizer/vocabulary", ".model-1.json"])
def test_a_damaged_copy_is_made_anew_before_the_next_process_uses_it(tmp_path, part, damage):
    fetched = []

    def fetch(directory: Path) -> None:
        fetched.append(directory)
        (directory / "tokenizer").mkdir()
        (directory / "weights").write_bytes(bytes(range(200)))
        (directory / "tokenizer" / "vocabulary").write_text("words")

    LocalCopies(tmp_path).fetch("models/model-1", fetch)
    LocalCopies(tmp_path).fetch("models/model-1", fetch)
    assert len(fetched) == 1
    file = tmp_path / "models" / part
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))

    copies = LocalCopies(tmp_path)
    directory = copies.fetch("models/model-1", fetch)

    assert len(fetched) == 2
    assert (directory / "weights").read_bytes() == bytes(range(200))
    assert (directory / "tokenizer" / "vocabulary").read_text() == "words"
    assert sorted(path.name for path in directory.iterdir()) == ["tokenizer", "weights"]


def test_a_file_too_many_is_damage_too(tmp_path, make):
    (directory,) = make("models/1")
    (directory / "chat_template.jinja").write_text("{{ 1 }}")

    make("models/1")

    assert [path.name for path in directory.iterdir()] == ["file"]


def test_a_copy_in_use_is_verified_once_and_again_after_its_release(tmp_path, make):
    copies = LocalCopies(tmp_path)
    (directory,) = make("models/1", copies=copies)
    (directory / "file").write_bytes(b"damaged")

    make("models/1", copies=copies)
    assert (directory / "file").read_bytes() == b"damaged"

    copies.release()
    make("models/1", copies=copies)
    assert (directory / "file").read_bytes() == bytes(100)


def test_a_long_verification_says_how_it_gets_on_and_can_be_ended(tmp_path, make, monkeypatch):
    """Whoever waits for a load of a large model would else take it for hung."""
    (directory,) = make("models/1")
    told: list[str | int] = []

    def transfer(name: str, size_bytes: int):
        told.extend((name, size_bytes))
        return told.append

    def fetch(copies: LocalCopies) -> None:
        copies.fetch("models/1", lambda directory: pytest.fail("it is there"))

    fetch(LocalCopies(tmp_path, transfer=transfer))
    assert told == []
    monkeypatch.setattr(local_copies, "_LONG_BYTES", 100)
    fetch(LocalCopies(tmp_path, transfer=transfer))
    assert told == ["verifying 1", 100, 100]

    def stop(count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fetch(LocalCopies(tmp_path, transfer=lambda name, size_bytes: stop))
    assert (directory / "file").stat().st_size == 100


def test_no_copies_are_nothing_to_do(tmp_path):
    LocalCopies(tmp_path / "absent").trim(max_bytes=0, max_age_s=DAY_S)


def test_a_copy_of_a_version_that_notes_more_is_used_as_it_is(tmp_path, make):
    (directory,) = make("models/1")
    record = directory.with_name(".1.json")
    body = documents.unseal(record.read_bytes(), key="record")
    more = [{**file, "dtype": "bf16"} for file in body["files"]]
    record.write_bytes(documents.seal({**body, "files": more, "made_by": "0.9.0"}))
    before = (directory / "file").stat().st_ino

    make("models/1")

    assert (directory / "file").stat().st_ino == before


@pytest.mark.parametrize("body", [{}, {"files": 3}, {"files": [{"path": "file"}]}, {"files": ["file"]}])
def test_a_copy_whose_record_says_something_else_is_made_anew(tmp_path, make, body):
    (directory,) = make("models/1")
    directory.with_name(".1.json").write_bytes(documents.seal(body))
    (directory / "file").write_bytes(b"damaged")

    make("models/1")

    assert (directory / "file").read_bytes() == bytes(100)
