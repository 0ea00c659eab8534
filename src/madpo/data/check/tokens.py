"""What a model's tokenizer and chat template make of rows: lengths, what is cut, and what the model sees."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from madpo.data.check import row_texts as parts
from madpo.data.check.examine import FAULTS, examine
from madpo.data.check.findings import Findings
from madpo.data.check.numbers import Numbers
from madpo.data.check.report import OverlongOutcome, RenderedExample, Span, TemplateCheck, TokenFigures
from madpo.data.check.template import check_template
from madpo.data.check.text import LengthComparison
from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.limited import load_limited
from madpo.data.loss_mask import spans
from madpo.data.other_cut import TAKE_THE_FILE, cut_otherwise
from madpo.data.overlong import POLICIES, fit, keep_whole, length
from madpo.data.tokenize import Encoded, shared_length, template_sha256, tokenizer_sha256
from madpo.data.unembedded import ADVICE, UnembeddedTokens
from madpo.errors import InvalidPairError
from madpo.jobs.training import Overlong, TrainingParameters
from madpo.model_files.companions import generation_ends
from madpo.model_files.context_limit import directory_limit
from madpo.model_files.vocabulary import embedding_count
from madpo.types import DatasetRow, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPT_TOKENS, _RESPONSE_TOKENS = 160, 240
"""Tokens of an example that are shown: the end of its prompt and the beginning of its response."""

_MAX_TOKENS: int = TrainingParameters.model_fields["max_tokens"].default

_FATES: dict[Overlong, str] = {
    "error": "the training is refused, unless --overlong drops or cuts them",
    "drop": "the row is left out",
    "truncate_prompt": "the beginning of the prompt is cut",
    "truncate_response": "the end of the responses is cut",
}
_FATAL_CHECKS = (
    "renders a conversation",
    "prompt is a prefix",
    "no generation prompt behind a response",
    "shows tools",
)


class TokenCheck:
    """Encodes rows as they pass, and measures what became of them.

    Args:
        directory: Of the model, or of its tokenizer alone.
        findings: Where faults go.
        model: What to call the model.
        max_tokens: Longest prompt plus response; None for 1024, or what the model can read where that is less.
        overlong: What the training will do with longer rows.
        workers: See `RowEncoder`.

    Attributes:
        tokenizer: The model's.
    """

    def __init__(
        self,
        directory: Path,
        findings: Findings,
        *,
        model: str,
        max_tokens: int | None = None,
        overlong: Overlong = "error",
        workers: int | None = None,
    ) -> None:
        self._directory, self.tokenizer = directory, load_limited(directory)
        self._ends = generation_ends(directory)
        self._encoder = RowEncoder(directory, self.tokenizer, examine=examine, workers=workers)
        self._findings, self._model, self._overlong = findings, model, overlong
        self._limit = directory_limit(directory)
        self._unembedded = UnembeddedTokens(self.tokenizer, embedding_count(directory))
        self._max_tokens = max_tokens or min(_MAX_TOKENS, self._limit or _MAX_TOKENS)
        self._lengths: dict[str, Numbers] = {}
        self._shared, self._comparison = Numbers(), LengthComparison()
        self._outcomes = {policy: _Outcomes() for policy in POLICIES}
        self._examples = _Examples()
        self._roles: set[str] = set()
        self._has_tools = self._has_text = False

    def watch(self, rows: Iterable[DatasetRow]) -> Iterator[tuple[DatasetRow, EncodedRow | None]]:
        """Yield each row with its tokens; None where it has none."""
        for row, outcome, faults in self._encoder.encode(rows):
            for code, example in faults:
                fault = FAULTS[code]
                self._findings.add(
                    code, row.row, severity=fault.severity, title=fault.title, advice=fault.advice, example=example
                )
            self._has_tools |= row.options.tools is not None
            self._has_text |= isinstance(row.prompt, str)
            self._roles.update(turn.role for turn in parts.turns(row.prompt))
            if isinstance(outcome, InvalidPairError):
                yield row, None
            else:
                self._measure(row, outcome)
                yield row, outcome

    def figures(self) -> TokenFigures:
        """What was found, once all rows have passed."""
        template: tuple[TemplateCheck, ...] = ()
        if self._roles:
            template = check_template(self.tokenizer, roles=self._roles, has_tools=self._has_tools, ends=self._ends)
        for check in template:
            if not check.passed:
                self._findings.note(
                    "template",
                    severity="error" if check.name in _FATAL_CHECKS else "warning",
                    title=f"chat template, {check.name}: {check.detail}",
                )
        if self._has_text and self.tokenizer.chat_template:
            self._findings.note(
                "unused_template",
                severity="info",
                title="the rows are plain text, so the model's chat template is not used",
                advice="a chat model expects messages; give prompt and responses as messages to train it as one",
            )
        if others := cut_otherwise(self.tokenizer, self._directory):
            self._findings.note("other_cut", severity="warning", title=others, advice=TAKE_THE_FILE)
        if self._limit is not None and self._max_tokens > self._limit:
            self._findings.note(
                "context_limit",
                severity="error",
                title=f"max_tokens={self._max_tokens} is more than the {self._limit} tokens that the model can read",
                advice=f"give max_tokens={self._limit} or less",
            )
        return TokenFigures(
            model=self._model,
            tokenizer_sha256=tokenizer_sha256(self.tokenizer),
            template_sha256=template_sha256(self.tokenizer),
            max_tokens=self._max_tokens,
            lengths={name: found for name, numbers in self._lengths.items() if (found := numbers.distribution())},
            length_bias=self._comparison.figures("tokens"),
            shared_response_prefix=self._shared.distribution(),
            overlong={policy: outcomes.figures(policy) for policy, outcomes in self._outcomes.items()},
            template=template,
            examples=tuple(self._examples.rendered(self.tokenizer)),
        )

    def _measure(self, row: DatasetRow, encoded: EncodedRow) -> None:
        names = [parts.field_of(name) for name in parts.responses(row)]
        self._count("prompt", len(encoded.prompt_ids))
        # A gold response comes behind those that are compared and has no length of its own here.
        for name, ids in zip(names, encoded.responses, strict=False):
            self._count(name, len(ids))
        self._count("sequence", length(encoded))
        if isinstance(row, PreferencePair):
            chosen, rejected = encoded.responses[:2]
            self._comparison.add(len(chosen), len(rejected))
            self._shared.add(shared_length(chosen, rejected))
        self._examples.add(names, encoded)
        if (token := self._unembedded.first(encoded.prompt_ids, *encoded.responses)) is not None:
            self._findings.add(
                "unembedded_token",
                encoded.row,
                severity="error",
                title="a token that the model has no embedding for",
                advice=ADVICE,
                example=token,
            )
        self._measure_overlong(encoded)

    def _measure_overlong(self, encoded: EncodedRow) -> None:
        is_overlong = length(encoded) > self._max_tokens
        for policy, outcomes in self._outcomes.items():
            kept: EncodedRow | None = encoded
            if is_overlong:
                kept = fit(encoded, self._max_tokens, policy, bos_id=self.tokenizer.bos_token_id)
            outcomes.add(encoded, kept)
        if is_overlong:
            self._findings.add(
                "overlong",
                encoded.row,
                severity="error" if self._overlong == "error" else "warning",
                title=f"longer than max_tokens={self._max_tokens}",
                advice=f"overlong={self._overlong}: {_FATES[self._overlong]}; "
                f"to keep them whole, {keep_whole(self._max_tokens, self._limit)}",
                tokens=length(encoded),
            )

    def _count(self, name: str, tokens: int) -> None:
        self._lengths.setdefault(name, Numbers()).add(tokens)


class _Outcomes:
    """What a policy did to rows."""

    def __init__(self) -> None:
        self.kept = self.truncated = self.dropped = self.lost_tokens = 0

    def add(self, before: EncodedRow, after: EncodedRow | None) -> None:
        self.kept += after is not None
        self.dropped += after is None
        self.truncated += after is not None and after is not before
        self.lost_tokens += _all_tokens(before) - (0 if after is None else _all_tokens(after))

    def figures(self, policy: Overlong) -> OverlongOutcome:
        refused = policy == "error" and self.dropped > 0
        return OverlongOutcome(
            kept=self.kept,
            truncated=self.truncated,
            dropped=self.dropped,
            refused=refused,
            lost_tokens=self.lost_tokens,
        )


class _Examples:
    """The first, the shortest and the longest row."""

    def __init__(self) -> None:
        self._first: tuple[list[str], EncodedRow] | None = None
        self._shortest: tuple[list[str], EncodedRow] | None = None
        self._longest: tuple[list[str], EncodedRow] | None = None

    def add(self, names: list[str], row: EncodedRow) -> None:
        self._first = self._first or (names, row)
        if self._shortest is None or length(row) < length(self._shortest[1]):
            self._shortest = names, row
        if self._longest is None or length(row) > length(self._longest[1]):
            self._longest = names, row

    def rendered(self, tokenizer: "PreTrainedTokenizerBase") -> Iterator[RenderedExample]:
        seen: set[int] = set()
        for example in (self._first, self._shortest, self._longest):
            if example is not None and example[1].row not in seen:
                seen.add(example[1].row)
                names, row = example
                for place, name in enumerate(names):
                    yield _render(tokenizer, row.row, name, row.sequence(place))


def _render(tokenizer: "PreTrainedTokenizerBase", row: int, side: str, sequence: Encoded) -> RenderedExample:
    prompt, ids = sequence.prompt_ids[-_PROMPT_TOKENS:], sequence.response_ids
    before, after = len(sequence.prompt_ids) - len(prompt), len(ids) - _RESPONSE_TOKENS
    shown = [Span(text=(f"[{before} tokens] " if before else "") + _decode(tokenizer, prompt), in_loss=False)]
    shown += [
        Span(text=_decode(tokenizer, ids[start:end]), in_loss=counts)
        for start, end, counts in spans(sequence.mask, min(len(ids), _RESPONSE_TOKENS))
        if end > start
    ]
    if after > 0:
        shown[-1] = shown[-1].model_copy(update={"text": f"{shown[-1].text} [{after} tokens]"})
    return RenderedExample(row=row, side=side, tokens=len(sequence), loss_tokens=sequence.counted, spans=tuple(shown))


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _all_tokens(row: EncodedRow) -> int:
    return len(row.prompt_ids) + sum(map(len, row.responses))
