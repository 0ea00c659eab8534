"""What looks like an e-mail address or a secret in a text. Patterns only: a count for people to look at, no proof."""

import re

_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")

_SECRETS: dict[str, tuple[str, re.Pattern[str]]] = {
    "private key": ("PRIVATE KEY", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    "AWS access key": ("AKIA", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    "GitHub token": ("gh", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})")),
    "GitLab token": ("glpat-", re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    "Slack token": ("xox", re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}")),
    "Google API key": ("AIza", re.compile(r"\bAIza[A-Za-z0-9_-]{35}")),
    "sk- key": ("sk-", re.compile(r"\bsk-(?:[A-Za-z]+-)*[A-Za-z0-9_-]{20,}")),
    "Hugging Face token": ("hf_", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    "JSON web token": ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")),
    "password in a URL": ("://", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]{1,64}:[^\s/:@]{3,64}@")),
}
"""Each with a marker that is looked for first: searching for a plain string costs next to nothing."""


def find_personal(text: str) -> set[str]:
    """Names of what was found."""
    found = {name for name, (marker, pattern) in _SECRETS.items() if marker in text and pattern.search(text)}
    if "password in a URL" in found:
        text = _SECRETS["password in a URL"][1].sub(" ", text)  # what stands before its @ is no mailbox
    if "@" in text and _EMAIL.search(text):
        found.add("e-mail address")
    return found
