"""What a failing disk or file system means, and what to do about it; the counterpart of `s3_errors`.

Whatever passes by itself, or an operator can mend, is an UnavailableError or an OverloadedError, so that services wait
for it and say why. What is wrong with one object is an error of that object: one that the disk cannot read, while the
rest of the store works, is as good as damaged.
"""

import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madpo.errors import CorruptObjectError, InternalError, MadpoError, OverloadedError, UnavailableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OF_THE_KEY = frozenset(
    {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY, errno.EINVAL}
)
"""What stands elsewhere in the store, or the name itself, is in the way: no wait ends that."""
_REMEDIES = {
    errno.EACCES: "let the user that services run as read and write it",
    errno.EPERM: "let the user that services run as read and write it",
    errno.EROFS: "its file system is read-only; where the kernel made it so after an error, its log says why:"
    " check the disk, then mount it for writing",
    errno.EIO: "its disk fails; the kernel's log says more",
    errno.EFBIG: "its file system, or a limit of the process (ulimit -f), holds no file of that size",
    errno.ESTALE: "its file server has put something else in its place; that passes by itself, or mount it again",
    errno.EMFILE: "this process has too many open files; raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.ENODEV: "its disk is gone: mount it again",
    errno.ENXIO: "its disk is gone: mount it again",
    errno.ENOTCONN: "its file server is away: mount it again, or wait for it",
}
"""By number; what is not here (time-outs, interruptions, a server that is down) is said as it is, and waited for."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The directory of a store, for messages.

    Attributes:
        root: The directory.
        works: Whether something can be written there and read again.
    """

    root: Path
    works: Callable[[], bool]

    @contextmanager
    def errors(self, key: str = "", *, reads: bool = False) -> Iterator[None]:
        """Turn what using it raises into errors of ours.

        Args:
            key: Of the object that it is about; "" where it is about all of them.
            reads: Whether the bytes of that object are read.
        """
        try:
            yield
        except MadpoError:
            raise  # some are an OSError too
        except OSError as error:
            raise self._explained(error, key, reads) from error

    def _explained(self, error: OSError, key: str, reads: bool) -> MadpoError:
        where = f"object store file://{self.root}"
        if error.errno in _FULL:
            return OverloadedError(f"{where} is full: free some space on its disk")
        if key and error.errno in _OF_THE_KEY:
            return InternalError(f"{where} cannot hold {key}: {error}")
        if key and reads and error.errno == errno.EIO and self.works():
            return CorruptObjectError(f"{key} cannot be read from the disk of {where} ({error.strerror}), others can")
        remedy = _REMEDIES.get(error.errno or 0)
        return UnavailableError(f"{where} cannot be used: {error}{f'; {remedy}' if remedy else ''}")


class ObjectFile(io.FileIO):
    """A stored file whose reads raise errors of ours.

    Args:
        path: The file.
        errors: What turns them, such as `Disk.errors` of a key.
    """

    def __init__(self, path: Path, errors: Callable[[], Any]) -> None:
        super().__init__(path, "rb")
        self._errors = errors

    def readinto(self, buffer: Any) -> int | None:
        """See `io.FileIO`."""
        with self._errors():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        """See `io.FileIO`."""
        with self._errors():
            return super().readall()
