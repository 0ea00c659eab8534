"""What the texts of a dataset look like: lengths, roles, scripts, first words, and what should not be in them."""

from collections import Counter

from madpo.data.check import row_texts as parts
from madpo.data.check.findings import Findings
from madpo.data.check.numbers import Numbers, wilson_interval
from madpo.data.check.personal import find_personal
from madpo.data.check.report import LengthBias, Phrase, TextFigures
from madpo.data.check.scripts import script_of
from madpo.types import Content, DatasetRow, PreferencePair

_LISTED = 5
_MAX_FIRST_WORDS = 50_000
_BIASED = 0.65
"""A warning is due when the longer response is chosen this often: length alone would be that accurate a judge."""
_MIN_BIASED_PAIRS = 30


class LengthComparison:
    """Counts which response of a pair is longer."""

    def __init__(self) -> None:
        self.chosen = self.rejected = self.equal = 0

    def add(self, chosen: int, rejected: int) -> None:
        """The lengths of one pair."""
        self.chosen += chosen > rejected
        self.rejected += chosen < rejected
        self.equal += chosen == rejected

    def figures(self, unit: str) -> LengthBias | None:
        """The share with its interval; None without pairs of different lengths."""
        different = self.chosen + self.rejected
        if not different:
            return None
        low, high = wilson_interval(self.chosen, different)
        return LengthBias.model_validate(
            {
                "unit": unit,
                "pairs": different + self.equal,
                "equal": self.equal,
                "longer_chosen_ratio": self.chosen / different,
                "low": low,
                "high": high,
            }
        )


def warn_of_length_bias(bias: LengthBias | None, findings: Findings) -> None:
    """A warning where length tells too much about the preference."""
    if bias is None or bias.pairs - bias.equal < _MIN_BIASED_PAIRS or bias.low < _BIASED:
        return
    findings.note(
        "length_bias",
        severity="warning",
        title=f"the longer response is chosen in {bias.longer_chosen_ratio:.0%} of the pairs",
        count=bias.pairs,
        advice="a model learns length before anything else; balance the pairs, or take a length-normalised method",
    )


class TextMeasure:
    """Collects figures over rows."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._characters: dict[str, Numbers] = {}
        self._turns = Numbers()
        self._roles: Counter[str] = Counter()
        self._sequences: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._personal: Counter[str] = Counter()
        self._first_words: dict[str, Counter[str]] = {}
        self._system_prompts: set[int] = set()
        self._systems = self._empty_systems = self._mixed = self._pairs = self._shared_first = 0
        self._lengths = LengthComparison()

    def add(self, row: DatasetRow) -> None:
        """Take a row in."""
        contents = {"prompt": row.prompt, **parts.responses(row)}
        texts = {name: parts.text(content) for name, content in contents.items()}
        for name, text in texts.items():
            self._characters.setdefault(parts.field_of(name), Numbers()).add(len(text))
        self._add_turns(row, contents)
        self._add_scripts(row, texts)
        self._add_first_words(texts)
        if isinstance(row, PreferencePair):
            self._pairs += 1
            self._lengths.add(len(texts["chosen"]), len(texts["rejected"]))
            self._shared_first += _first_word(texts["chosen"]) == _first_word(texts["rejected"])
        for name in sorted(set().union(*map(find_personal, texts.values()))):
            self._personal[name] += 1
            self._findings.add(
                "personal",
                row.row,
                severity="warning",
                title=f"has what looks like {'an' if name[0] in 'aeA' else 'a'} {name}",
                advice="models repeat what they were trained on; look at these rows and replace it",
                kind=name,
            )

    def length_bias(self) -> LengthBias | None:
        """In characters."""
        return self._lengths.figures("characters")

    def personal(self) -> dict[str, int]:
        """Rows by what was found in them."""
        return dict(self._personal.most_common())

    def figures(self) -> TextFigures:
        """All else."""
        return TextFigures(
            characters={name: found for name, numbers in self._characters.items() if (found := numbers.distribution())},
            turns=self._turns.distribution(),
            roles=dict(self._roles.most_common()),
            role_sequences=_most_common(self._sequences),
            system_prompts=self._systems,
            distinct_system_prompts=len(self._system_prompts),
            empty_system_prompts=self._empty_systems,
            scripts=dict(self._scripts.most_common()),
            mixed_scripts=self._mixed,
            shared_first_word_ratio=self._shared_first / self._pairs if self._pairs else None,
            first_words={name: _most_common(words) for name, words in self._first_words.items()},
        )

    def _add_turns(self, row: DatasetRow, contents: dict[str, Content]) -> None:
        prompt = parts.turns(row.prompt)
        if prompt:
            self._turns.add(len(prompt))
            sequence = [turn.role for turn in prompt]
            self._sequences[" ".join(sequence[:8]) + (" ..." if len(sequence) > 8 else "")] += 1
        for content in contents.values():
            self._roles.update(turn.role for turn in parts.turns(content))
        systems = [turn.content for turn in prompt if turn.role == "system"]
        if not systems:
            return
        self._systems += 1
        self._system_prompts.update(map(hash, systems))
        if not all(map(str.strip, systems)):
            self._empty_systems += 1
            self._findings.add(
                "empty_system_prompt",
                row.row,
                severity="warning",
                title="has an empty system prompt",
                advice="templates render it, or put their own in its place; leave the message out where none is meant",
            )

    def _add_scripts(self, row: DatasetRow, texts: dict[str, str]) -> None:
        prompt, *others = map(script_of, texts.values())
        spoken = [script for script in (prompt, *others) if script != "none"]
        self._scripts[spoken[0] if spoken else "none"] += 1
        if len(set(spoken)) > 1:
            self._mixed += 1
            self._findings.add(
                "mixed_scripts",
                row.row,
                severity="info",
                title="prompt and responses are mostly in different scripts",
                scripts=spoken,
            )

    def _add_first_words(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            if name != "prompt":
                words = self._first_words.setdefault(parts.field_of(name), Counter())
                word = _first_word(text)
                if word in words or len(words) < _MAX_FIRST_WORDS:
                    words[word] += 1


def _first_word(text: str) -> str:
    words = text.split(maxsplit=1)
    return words[0][:40] if words else ""


def _most_common(counts: Counter[str]) -> tuple[Phrase, ...]:
    total = counts.total()
    return tuple(Phrase(text=text, ratio=count / total) for text, count in counts.most_common(_LISTED))
