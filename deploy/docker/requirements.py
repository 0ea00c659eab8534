"""Print what extras of pyproject.toml require, so that an image layer of dependencies does not change with the code.

python requirements.py pyproject.toml gateway
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]


def requirements(extra: str) -> set[str]:
    """Requirements of an extra, with those of the extras it names."""
    found: set[str] = set()
    for line in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
        found |= set().union(*map(requirements, own[1].split(","))) if own else {line}
    return found


print("\n".join(sorted(set(project["dependencies"]).union(*map(requirements, sys.argv[2:])))))
