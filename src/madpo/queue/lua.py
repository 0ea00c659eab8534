"""The scripts that change the queue."""

import hashlib
from importlib.resources import files

_SCRIPTS = (
    "announce",
    "announced",
    "cancel",
    "claim",
    "create",
    "finish",
    "forget",
    "give_back",
    "leases",
    "mark",
    "page",
    "publish",
    "reap",
    "reinstate",
    "renew",
    "reserve",
    "restore",
    "resume",
    "retire",
    "retired",
    "status",
)


def load_scripts() -> dict[str, tuple[str, str]]:
    """By name: the SHA-1 by which the server knows a script, and its text."""
    folder = files("madpo.queue") / "scripts"
    common = (folder / "common.lua").read_text()
    texts = {name: common + (folder / f"{name}.lua").read_text() for name in _SCRIPTS}
    return {name: (hashlib.sha1(text.encode()).hexdigest(), text) for name, text in texts.items()}  # noqa: S324 - Redis names scripts so
