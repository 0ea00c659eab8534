"""How much the data tests have tried, for the line that ends a run: `tests/conftest.py` prints it."""

from collections import Counter, defaultdict

_NAMES: defaultdict[str, set[str]] = defaultdict(set)
_AMOUNTS: Counter[str] = Counter()


def note(kind: str, name: str) -> None:
    """Count a thing of some kind ("forms", "file formats", "malformed cases") once, however often it is tried."""
    _NAMES[kind].add(name)


def add(kind: str, amount: int = 1) -> None:
    """Count something ("property examples") every time."""
    _AMOUNTS[kind] += amount


def summary() -> str:
    """`12 file formats, 20 forms, 1,400 property examples`; empty when nothing was counted."""
    amounts = {kind: len(names) for kind, names in _NAMES.items()} | _AMOUNTS
    return ", ".join(f"{amount:,} {kind}" for kind, amount in sorted(amounts.items()))
