"""What is stored."""

from pathlib import Path

import pytest

from tests.contract.stepping import FILES


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in FILES.items():
        (source / name).write_bytes(data)
    return source
