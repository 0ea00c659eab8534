"""What documents say of the code's layout is so."""

import re
from pathlib import Path

import pytest

import madpo

ROOT = Path(madpo.__file__).parents[2]
READMES = sorted((ROOT / "services").glob("*/README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_modules_that_a_service_page_lists_exist(readme: Path) -> None:
    (package,) = [path for path in readme.parent.iterdir() if path.name.startswith("madpo_") and path.is_dir()]
    rows = [line.split("|")[1] for line in readme.read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", row)]
    assert named
    assert [name for name in named if not (package / name).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_service_page_lists_every_module_of_the_service(readme: Path) -> None:
    (package,) = [path for path in readme.parent.iterdir() if path.name.startswith("madpo_") and path.is_dir()]
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    text = readme.read_text()
    assert [name for name in sorted(modules | folders) if f"`{name}" not in text] == []


def test_the_layout_names_every_package_of_the_library() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    layout = text[: text.index("Dependencies point one way")]
    parts = {path.stem for path in (ROOT / "src" / "madpo").iterdir() if path.suffix == ".py" or path.is_dir()}
    parts -= {"__pycache__", "__init__", "py", "v1"}
    assert sorted(part for part in parts if not re.search(rf"\b{part}\b", layout)) == []
