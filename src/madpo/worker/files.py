"""Files by which processes talk."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file that is seen whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
