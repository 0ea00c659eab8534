"""What can happen to bytes at rest."""

from collections.abc import Callable


def flip(data: bytes) -> bytes:
    """One bit of the byte in the middle is another."""
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] if data else b"\x01"


def cut(data: bytes) -> bytes:
    """The last byte is missing."""
    return data[:-1]


def empty(data: bytes) -> bytes:
    """All bytes are."""
    return b""


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (flip, cut, empty)
