"""Which script a text is written in, by counting letters: no model, and no claim about the language."""

import re

_SCRIPTS = {
    "Latin": "A-Za-zªºÀ-ÖØ-öø-ʸ\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Armenian": "\u0531-\u0587",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff\u1c90-\u1cbf",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Kana": "\u3041-\u30ff\u31f0-\u31ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
}
_RUNS = {name: re.compile(f"[{ranges}]+") for name, ranges in _SCRIPTS.items()}
_ANY_LATIN = re.compile("[A-Za-z]")
_MAX_CHARS = 2000
"""The beginning of a text tells its script."""


def script_of(text: str) -> str:
    """The script most letters of a text are in; "other" when they are in none of ours, "none" without letters."""
    text = text[:_MAX_CHARS]
    if text.isascii():
        return "Latin" if _ANY_LATIN.search(text) else "none"
    counts = {name: sum(map(len, runs.findall(text))) for name, runs in _RUNS.items()}
    if counts["Kana"]:
        # Japanese is written in both; Han characters beside kana are part of it.
        counts["Kana"] += counts.pop("Han")
    name, most = max(counts.items(), key=lambda item: item[1])
    if most:
        return name
    return "other" if any(map(str.isalpha, text)) else "none"
