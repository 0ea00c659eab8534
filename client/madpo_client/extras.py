"""What the base install leaves out: packages of an extra, asked for where they are first needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from madpo.errors import FailedPreconditionError


class MissingExtraError(FailedPreconditionError):
    """Packages are missing; the message names the extra to install. The command line ends with exit code 2."""

    @classmethod
    def of(cls, purpose: str, packages: Sequence[str], extra: str) -> "MissingExtraError":
        """In one line."""
        verb = "is" if len(packages) == 1 else "are"
        named = ", ".join(packages)
        return cls(f"{purpose} needs {named}, which {verb} not installed: pip install 'madpo[{extra}]'")


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Imports within the block are of packages that come with the extra.

    Raises:
        MissingExtraError: One is missing.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").split(".")[0]
        if package.startswith("madpo"):
            raise  # a defect of ours: no extra helps
        raise MissingExtraError.of(purpose, [package], extra) from error


def require_extra(extra: str, purpose: str, packages: Sequence[str]) -> None:
    """Look for packages without importing them. Raises MissingExtraError with all that are missing."""
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise MissingExtraError.of(purpose, missing, extra)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
