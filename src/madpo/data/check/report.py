"""The report of a dataset check: figures, and findings that name rows. Its JSON form is the same at every front end."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

MAX_LISTED_ROWS = 20
"""Row numbers a finding names; the file of rows has all of them."""

Severity = Literal["error", "warning", "info"]
Verdict = Literal["clean", "warnings", "refused"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Histogram(_Part):
    """Counts between edges; the last bin reaches to the largest value, however far that is."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Distribution(_Part):
    """How some numbers are spread."""

    count: int
    mean: float
    smallest: float
    largest: float
    quantiles: dict[str, float]
    """By share, "0.5" being the median: the smallest number that at least this share does not exceed."""
    histogram: Histogram


class Finding(_Part):
    """One thing that was found, with the rows it was found in."""

    code: str
    """Stable name, such as `near_duplicate`; refused rows are `refused`, once per reason."""
    severity: Severity
    """An error refuses the dataset; a warning is for people to judge."""
    title: str
    count: int
    """Rows, or what the title says."""
    rows: tuple[int, ...] = ()
    """The first rows, by their number in the file from 1."""
    advice: str = ""
    example: str = ""
    """Such as the tokens of the first row around the place that is wrong."""


class FormFigures(_Part):
    """A form that rows of the file have."""

    name: str
    rows: int
    """Rows of the file that could be used."""
    columns: dict[str, str]
    """Our names of columns, and where each was read from."""


class RowCounts(_Part):
    """What became of the rows."""

    read: int
    kept: int
    """Dataset rows made; a row with a ranking may make several."""
    refused: int
    kinds: dict[str, int]
    """Kept rows by kind of dataset."""
    forms: tuple[FormFigures, ...] = ()


class DuplicateFigures(_Part):
    """Rows that say again, or against, what another row says."""

    exact: int
    """Rows equal to an earlier one."""
    near: int
    """Rows that share most of their word sequences with an earlier one, without those equal to it."""
    near_threshold: float
    """Estimated Jaccard similarity of word trigrams from which on rows are near."""
    identical: int
    """Pairs whose responses differ in nothing but white space and letter case, without those refused."""
    contradictory: int
    """Pairs that prefer the response an earlier pair of the same prompt rejects to the one it chose."""
    distinct_prompts: int


class LeakageFigures(_Part):
    """Prompts of the held-out rows that are in the data too."""

    held_out_rows: int
    held_out_prompts: int
    exact: int
    """Rows whose prompt is a held-out one but for white space and letter case."""
    near: int
    """Rows whose prompt shares most of its word sequences with a held-out one."""


class LengthBias(_Part):
    """How often the longer response is the chosen one."""

    unit: Literal["characters", "tokens"]
    pairs: int
    equal: int
    longer_chosen_ratio: float
    """Among pairs of different lengths."""
    low: float
    """95 % interval (Wilson)."""
    high: float


class Phrase(_Part):
    """Something frequent and its share."""

    text: str
    ratio: float


class TextFigures(_Part):
    """What the texts look like, without a tokenizer."""

    characters: dict[str, Distribution]
    """Length of each field: prompt, chosen, rejected, completion, responses."""
    turns: Distribution | None
    """Messages per row's prompt; None where all prompts are text."""
    roles: dict[str, int]
    """Messages by role."""
    role_sequences: tuple[Phrase, ...]
    """The most frequent orders of roles in prompts."""
    system_prompts: int
    """Rows with a system message."""
    distinct_system_prompts: int
    empty_system_prompts: int
    scripts: dict[str, int]
    """Rows by the script most of their letters are in. Scripts, not languages: Latin is English as well as Turkish."""
    mixed_scripts: int
    """Rows whose prompt and response are mostly in different scripts."""
    shared_first_word_ratio: float | None
    """Share of pairs whose two responses begin with the same word."""
    first_words: dict[str, tuple[Phrase, ...]]
    """The most frequent first words of each kind of response."""


class OverlongOutcome(_Part):
    """What a policy for overlong rows would leave."""

    kept: int
    """Rows trained on, truncated ones included."""
    truncated: int
    dropped: int
    refused: bool
    """Whether the training would be refused."""
    lost_tokens: int
    """Tokens cut off or dropped."""


class TemplateCheck(_Part):
    """One promise of the chat template, tried."""

    name: str
    passed: bool
    detail: str


class Span(_Part):
    """Consecutive tokens of a rendered row."""

    text: str
    in_loss: bool
    """Whether the loss is taken on them."""


class RenderedExample(_Part):
    """One sequence as the model sees it, special tokens spelled out."""

    row: int
    side: str
    """`chosen`, `rejected` or `completion`."""
    tokens: int
    loss_tokens: int
    spans: tuple[Span, ...]


class TokenFigures(_Part):
    """What a model's tokenizer and chat template make of the rows."""

    model: str
    tokenizer_sha256: str
    template_sha256: str
    max_tokens: int
    lengths: dict[str, Distribution]
    """Tokens of each field, and of `sequence`: prompt and response together."""
    length_bias: LengthBias | None
    shared_response_prefix: Distribution | None
    """Leading tokens that the two responses of a pair share: they cancel in the margin."""
    overlong: dict[str, OverlongOutcome]
    """By policy: `error`, `drop`, `truncate_prompt`, `truncate_response`."""
    template: tuple[TemplateCheck, ...]
    examples: tuple[RenderedExample, ...]


class CheckReport(_Part):
    """Everything a check found."""

    schema_version: Literal[1] = 1
    name: str
    """The file's name or the dataset's id."""
    rows: RowCounts
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then the rest; the more rows the earlier."""
    duplicates: DuplicateFigures
    leakage: LeakageFigures | None
    """None without held-out rows."""
    length_bias: LengthBias | None
    """In characters; None without pairs."""
    text: TextFigures
    personal: dict[str, int] = Field(default_factory=dict)
    """Rows by what looks like an e-mail address or a secret in them; what it is is never shown."""
    tokens: TokenFigures | None = None
    """None without a tokenizer."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """`refused` with any error, `warnings` with any warning, else `clean`."""
        severities = {finding.severity for finding in self.findings}
        return "refused" if "error" in severities else "warnings" if "warning" in severities else "clean"

    def to_json(self) -> str:
        """The report as a document."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "CheckReport":
        """Inverse of `to_json`."""
        import json

        value = json.loads(text)
        value.pop("verdict", None)
        return cls.model_validate(value)
