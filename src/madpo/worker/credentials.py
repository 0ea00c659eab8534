"""Credentials in what runs print and raise: none is passed on to those who watch a job."""

import re

_USER_IN_URL = re.compile(r"(?<=://)(?:[^/\s@'\"]*|[^/:\s@'\"]*:(?!\d+/)[^\s@'\"]*)@")
"""A password in a URL may hold slashes, where whoever wrote it forgot to escape them; a port is followed by one."""
_NAMED_SECRET = re.compile(
    r"(?i)(\b(?:bearer|authorization['\"]?\s*[=:]\s*['\"]?(?:basic|token))\s+"
    r"|(?:password|passwd|passphrase|secret\w*|api_?key|-signature|-security-token)['\"]?\s*[=:]\s*['\"]?)"
    r"[^\s,;&'\"]+"
)
_NAMED_TOKEN = re.compile(r"(?i)(token['\"]?\s*[=:]\s*['\"]?)(?=[a-z_-]*[0-9])[\w.-]{16,}")
"""Only what is long and has digits: other tokens are what models read."""
_KNOWN_BY_ITS_FORM = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|madpo_[\w-]{32,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
"""Tokens of hubs, forges, chats and clouds, and JSON web tokens, wherever they stand."""


def without_credentials(line: str) -> str:
    """A line with `***` for what is, or is called, a password, key, signature or token, and for users in URLs."""
    line = _NAMED_SECRET.sub(r"\1***", _USER_IN_URL.sub("***@", line))
    return _KNOWN_BY_ITS_FORM.sub("***", _NAMED_TOKEN.sub(r"\1***", line))
