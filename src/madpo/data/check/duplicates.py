"""Rows that repeat or contradict others, and prompts that were to be held out.

Equal rows are found by digest. Near ones by MinHash over word trigrams with locality-sensitive hashing (Broder, 1997;
the library is rensa, Rust without dependencies): an estimate that finds most rows above the threshold and few below it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

from rensa import RMinHash, RMinHashDeduplicator

from madpo.data.check import row_texts as parts
from madpo.data.check.findings import Findings
from madpo.data.check.report import DuplicateFigures, LeakageFigures
from madpo.types import DatasetRow, PreferencePair

NEAR_THRESHOLD = 0.8

_PERMUTATIONS = 128
_SEED = 1
_CHUNK_ROWS = 256
_SHINGLE = 3


class NearTexts:
    """Finds texts that are near to one added before."""

    def __init__(self) -> None:
        self._index = RMinHashDeduplicator(threshold=NEAR_THRESHOLD, num_perm=_PERMUTATIONS, use_lsh=True, seed=_SEED)

    def find(self, texts: Sequence[tuple[int, str]], *, add: bool) -> list[int | None]:
        """For each (number, text) the number of an earlier text it is near to; with `add` those near none are kept."""
        near: list[int | None] = []
        for (number, _), sketch in zip(texts, _sketches([text for _, text in texts]), strict=True):
            found = self._index.get_duplicates(sketch)
            near.append(min(map(int, found)) if found else None)
            if add and not found:
                self._index.add(str(number), sketch)
        return near


class Duplicates:
    """Looks for repetitions and contradictions among rows. Memory: about a KiB a row."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._seen: dict[bytes, int] = {}
        self._sides: dict[bytes, tuple[int, bool]] = {}
        self._prompts: set[bytes] = set()
        self._near = NearTexts()
        self._pending: list[tuple[int, str]] = []
        self._last_row = 0

    def add(self, row: DatasetRow) -> None:
        """Take a row in."""
        contents = parts.responses(row)
        self._prompts.add(_digest(parts.squeezed(row.prompt)))
        if isinstance(row, PreferencePair):
            self._compare_sides(row)
        identity = _digest(repr((row.prompt, row.options, *contents.values())))
        if (earlier := self._seen.setdefault(identity, row.row)) != row.row:
            self._findings.add(
                "duplicate",
                row.row,
                severity="warning",
                title="equal to an earlier row",
                advice="each copy weighs the row once more; remove them unless that is meant",
                of=earlier,
            )
            return
        if isinstance(row, PreferencePair) and self._contradicts(row):
            return
        if row.row == self._last_row:
            return  # Pairs made of one ranked list have their texts in common.
        self._last_row = row.row
        self._pending.append((row.row, "\n".join(map(parts.text, (row.prompt, *contents.values())))))
        if len(self._pending) >= _CHUNK_ROWS:
            self._compare_pending()

    def figures(self) -> DuplicateFigures:
        """What was found."""
        self._compare_pending()
        return DuplicateFigures(
            exact=self._findings.count("duplicate"),
            near=self._findings.count("near_duplicate"),
            near_threshold=NEAR_THRESHOLD,
            identical=self._findings.count("identical_pair"),
            contradictory=self._findings.count("contradictory_pair"),
            distinct_prompts=len(self._prompts),
        )

    def _compare_sides(self, pair: PreferencePair) -> None:
        if parts.squeezed(pair.chosen) == parts.squeezed(pair.rejected):
            self._findings.add(
                "identical_pair",
                pair.row,
                severity="warning",
                title="chosen and rejected differ in white space or letter case alone",
                advice="such a pair teaches spelling at most",
            )

    def _contradicts(self, pair: PreferencePair) -> bool:
        first, second = sorted((repr(pair.chosen), repr(pair.rejected)))
        is_ordered = repr(pair.chosen) == first
        key = _digest("\0".join((repr(pair.prompt), repr(pair.options), first, second)))
        earlier, was_ordered = self._sides.setdefault(key, (pair.row, is_ordered))
        if is_ordered == was_ordered:
            return False
        self._findings.add(
            "contradictory_pair",
            pair.row,
            severity="warning",
            title="prefers what an earlier row rejects, for the same prompt",
            advice="the two cancel each other; keep the one you believe",
            of=earlier,
        )
        return True

    def _compare_pending(self) -> None:
        for (row, _), near in zip(self._pending, self._near.find(self._pending, add=True), strict=True):
            if near is not None:
                self._findings.add(
                    "near_duplicate",
                    row,
                    severity="warning",
                    title="nearly equal to an earlier row",
                    advice="the first of each family may be enough",
                    of=near,
                )
        self._pending.clear()


class Leakage:
    """Looks for held-out prompts among rows.

    Args:
        held_out: The rows that must not be trained on.
    """

    def __init__(self, held_out: Iterable[DatasetRow], findings: Findings) -> None:
        self._findings = findings
        self._prompts: set[bytes] = set()
        self._near = NearTexts()
        self._pending: list[tuple[int, str]] = []
        self._held_out_rows = 0
        rows = iter(held_out)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            self._held_out_rows += len(chunk)
            new = {}
            for row in chunk:
                key = _digest(parts.squeezed(row.prompt))
                if key not in self._prompts:
                    self._prompts.add(key)
                    new[row.row] = parts.squeezed(row.prompt)
            self._near.find(list(new.items()), add=True)

    def add(self, row: DatasetRow) -> None:
        """Take a row in."""
        prompt = parts.squeezed(row.prompt)
        if _digest(prompt) in self._prompts:
            self._report("leaked_prompt", row.row, "the prompt is a held-out one")
            return
        self._pending.append((row.row, prompt))
        if len(self._pending) >= _CHUNK_ROWS:
            self._compare_pending()

    def figures(self) -> LeakageFigures:
        """What was found."""
        self._compare_pending()
        return LeakageFigures(
            held_out_rows=self._held_out_rows,
            held_out_prompts=len(self._prompts),
            exact=self._findings.count("leaked_prompt"),
            near=self._findings.count("nearly_leaked_prompt"),
        )

    def _compare_pending(self) -> None:
        for (row, _), near in zip(self._pending, self._near.find(self._pending, add=False), strict=True):
            if near is not None:
                self._report("nearly_leaked_prompt", row, "the prompt is nearly a held-out one", of=near)
        self._pending.clear()

    def _report(self, code: str, row: int, title: str, *, of: int | None = None) -> None:
        advice = "figures on held-out rows look better than they are, unless prompts are few and shared on purpose"
        self._findings.add(code, row, severity="warning", title=title, advice=advice, of=of)


def _sketches(texts: Sequence[str]) -> list[RMinHash]:
    sketches: list[RMinHash] = RMinHash.from_token_sets([_shingles(text) for text in texts], _PERMUTATIONS, _SEED)
    return sketches


def _shingles(text: str) -> list[str]:
    """Overlapping sequences of three words; of characters where a script does without spaces."""
    words: Sequence[str] = text.casefold().split()
    if len(words) * 20 < len(text):
        words, joint = text.casefold(), ""
    else:
        joint = " "
    if len(words) < _SHINGLE:
        return [joint.join(words)]
    return [joint.join(shingle) for shingle in zip(words, words[1:], words[2:], strict=False)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
