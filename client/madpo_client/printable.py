"""Text of others as a terminal may have it: names, ids, reasons and logs can hold what would steer it."""


def printable(text: str) -> str:
    """The text with a replacement character for every control and formatting one but line ends and tabs."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
