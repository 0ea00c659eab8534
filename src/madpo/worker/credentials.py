"""Credentials in what runs print and raise: none is passed on to those who watch a job."""

import re

_USER_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]*@")
_NAMED_SECRET = re.compile(
    r"(?i)(\bbearer\s+|(?:password|passwd|secret\w*|api_?key|-signature)['\"]?\s*[=:]\s*['\"]?)"
    r"[^\s,;&'\"]+"
)


def without_credentials(line: str) -> str:
    """A line with `***` for what it calls a password, key, signature or bearer token, and for users in URLs."""
    return _NAMED_SECRET.sub(r"\1***", _USER_IN_URL.sub("***@", line))
