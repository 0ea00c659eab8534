"""Every hostile file, sent to a real gateway: a typed refusal that says where, little memory, and nothing left behind.

The gateway runs in this process, so what it takes is in this process's peak.
"""

import ctypes
import re
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from madpo.errors import InvalidArgumentError
from tests import data_counts
from tests.hostile.case import MIB, Case
from tests.hostile.cases import all_cases
from tests.hostile.door import Door

pytestmark = pytest.mark.data

MOST_GROWTH_BYTES = 64 * MIB
CASES = all_cases()


def test_there_are_enough_cases_and_none_twice() -> None:
    assert len(CASES) >= 300
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


@pytest.mark.promise("H1")
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_hostile_file_is_refused(door: Door, case: Case, tmp_path: Path) -> None:
    data_counts.note("malformed cases", case.name)
    data_counts.note("kinds of malformed cases", case.group)
    path = tmp_path / case.file_name
    write(case, path)
    peak = Peak()

    with pytest.raises(InvalidArgumentError) as caught:
        await door.client.upload_dataset([path], display_name=case.name)

    growth_bytes = peak.growth_bytes()
    fields = [violation.field for violation in caught.value.violations]
    assert re.search(case.reason, str(caught.value)), str(caught.value)
    assert names(case.field, fields), (fields, str(caught.value))
    assert growth_bytes <= MOST_GROWTH_BYTES, f"{growth_bytes / MIB:.0f} MiB"
    assert len(str(caught.value)) < 2000
    assert door.left_behind() == []


def names(expected: str | None, fields: list[str]) -> bool:
    """Whether the first violation is where it should be; a `*` at the end stands for anything, also for nothing."""
    if expected is None:
        return not fields
    if expected.endswith("*"):
        return not fields or fields[0].startswith(expected[:-1])
    return fields[:1] == [expected]


def write(case: Case, path: Path) -> None:
    """The case's content, without holding a large one."""
    made = case.make()
    with path.open("wb") as file:
        file.writelines([made] if isinstance(made, bytes) else made)


class Peak:
    """The most memory that was resident since this was made, above what was so then."""

    def __init__(self) -> None:
        pa.default_memory_pool().release_unused()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        self._before_bytes = self._read("VmRSS")

    def growth_bytes(self) -> int:
        return self._read("VmHWM") - self._before_bytes

    def _read(self, name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))
