"""Plain values that cross module boundaries. No torch, no protobuf, nothing of ours."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that an assistant's turn calls."""

    name: str
    arguments: str = "{}"
    """JSON text of an object, its keys in the order given: the model reads them in that order."""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: str = ""
    """Empty where an assistant's turn only calls tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Of a tool's turn: the call that it answers."""
    name: str | None = None
    thinking: str | None = None
    """What an assistant thought before it answered; templates read it under this name or as `reasoning_content`."""
    reasoning_content: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the turn neither says nor calls anything."""
        return not (self.content.strip() or self.tool_calls)


MESSAGE_TEXTS = ("tool_call_id", "name", "thinking", "reasoning_content")
"""Optional texts of a message, in the order of its JSON form."""

Content = str | tuple[Message, ...]
"""Plain text, or chat messages to be rendered with the template of the model that reads them."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a chat template is given beside the messages, as JSON text: it can be compared and keeps its order."""

    tools: str | None = None
    """A list of function schemas."""
    template_kwargs: str | None = None
    """An object, such as `{"enable_thinking":false}`."""

    def template_inputs(self) -> dict[str, Any]:
        """Keyword arguments for `apply_chat_template`."""
        inputs = json.loads(self.template_kwargs) if self.template_kwargs else {}
        return inputs | ({"tools": json.loads(self.tools)} if self.tools else {})


NO_OPTIONS = ChatOptions()


def message_to_json(message: Message) -> dict[str, Any]:
    """The JSON form of a message, which is also what chat templates read; fields it does not have are left out."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    value |= {name: text for name in MESSAGE_TEXTS if (text := getattr(message, name)) is not None}
    if message.tool_calls:
        value["tool_calls"] = [
            ({} if call.id is None else {"id": call.id})
            | {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    return value


def message_from_json(value: Mapping[str, Any]) -> Message:
    """Inverse of `message_to_json`; the value was checked before."""
    calls = tuple(
        ToolCall(call["function"]["name"], json_text(call["function"]["arguments"]), call.get("id"))
        for call in value.get("tool_calls", ())
    )
    return Message(value["role"], value["content"], calls, **{name: value.get(name) for name in MESSAGE_TEXTS})


def content_to_json(content: Content) -> Any:
    """The JSON form of a content: a string, or a list of messages."""
    return content if isinstance(content, str) else [message_to_json(message) for message in content]


def content_from_json(value: Any) -> Content:
    """Inverse of `content_to_json`; the value was checked before."""
    return value if isinstance(value, str) else tuple(map(message_from_json, value))


def content_length(content: Content) -> int:
    """Characters that people wrote or a model said, calls included; no template is applied."""
    if isinstance(content, str):
        return len(content)
    return sum(
        len(turn.content) + sum(len(call.name) + len(call.arguments) for call in turn.tool_calls) for turn in content
    )


_COMPACT = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"))
"""`json.dumps` would make one anew for each of a dataset's digests."""


def json_text(value: Any) -> str:
    """Compact JSON of ASCII characters; keys stay in their order."""
    return _COMPACT.encode(value)


def content_digest(*contents: Content, options: ChatOptions = NO_OPTIONS) -> str:
    """32 hex digits of SHA-256 over the JSON of the contents, and of the options where there are any."""
    values = [content_to_json(content) for content in contents]
    if options != NO_OPTIONS:
        # An object, so that it can be taken for no content.
        values.append({"tools": options.tools, "template_kwargs": options.template_kwargs})
    return hashlib.sha256(json_text(values).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the preferred and the dispreferred response, and what its dataset says of them, if anything."""

    prompt: Content
    chosen: Content
    rejected: Content
    reward_margin: float | None = None
    """Chosen minus rejected reward, in reward-model logits."""
    row: int = 0
    """Row number in the uploaded file, from 1; 0 when unknown. Pairs of one ranked list share it."""
    gold: Content | None = None
    """A response better than both."""
    chosen_uncertainty: float | None = None
    """Standard deviation of the chosen response's reward, in reward-model logits, >= 0."""
    rejected_uncertainty: float | None = None
    semantic_distance: float | None = None
    """Between prompt and chosen response, 1 - cosine similarity, in [0, 2]."""
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    weight: float | None = None
    """Multiplies the pair's loss, >= 0; 1 when absent."""
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    """What its file calls the row."""
    source: str | None = None
    """Where its file says the row comes from."""
    _pair_id: str = field(default="", init=False, repr=False, compare=False)

    @property
    def pair_id(self) -> str:
        """Digest of the content: the same pair has the same id everywhere. Computed once."""
        if not self._pair_id:
            digest = content_digest(self.prompt, self.chosen, self.rejected, options=self.options)
            object.__setattr__(self, "_pair_id", digest)
        return self._pair_id


@dataclass(frozen=True, slots=True)
class ResponseList:
    """One prompt with two or more scored responses; all are different, not all scores are the same."""

    prompt: Content
    responses: tuple[Content, ...]
    scores: tuple[float, ...]
    """One per response, higher is better."""
    row: int = 0
    weight: float | None = None
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None

    @property
    def list_id(self) -> str:
        """Digest of the content, without the scores."""
        return content_digest(self.prompt, *self.responses, options=self.options)

    @property
    def best_and_worst(self) -> tuple[int, int]:
        """Places of the responses with the highest and the lowest score; of equal scores the first."""
        return self.scores.index(max(self.scores)), self.scores.index(min(self.scores))

    def as_pair(self) -> PreferencePair:
        """The best response against the worst."""
        best, worst = self.best_and_worst
        return PreferencePair(
            self.prompt,
            self.responses[best],
            self.responses[worst],
            row=self.row,
            weight=self.weight,
            options=self.options,
            id=self.id,
            source=self.source,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """One prompt with one response, for supervised training; the prompt may be empty text."""

    prompt: Content
    completion: Content
    row: int = 0
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None

    @property
    def completion_id(self) -> str:
        """Digest of the content."""
        return content_digest(self.prompt, self.completion, options=self.options)


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """One prompt to generate from."""

    prompt: Content
    row: int = 0
    options: ChatOptions = NO_OPTIONS
    id: str | None = None
    source: str | None = None


DatasetRow = PreferencePair | ResponseList | Completion | PromptOnly


class DatasetKind(StrEnum):
    """What the rows of a dataset are."""

    PREFERENCE = "preference"
    LIST = "list"
    COMPLETION = "completion"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Raw reward-model logits of one pair."""

    pair_id: str
    chosen_reward: float
    rejected_reward: float
    chosen_tokens: int
    rejected_tokens: int
    chosen_truncated: bool = False
    rejected_truncated: bool = False

    @property
    def reward_margin(self) -> float:
        """Chosen minus rejected reward, in reward-model logits."""
        return self.chosen_reward - self.rejected_reward


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """Raw reward-model logit of one response."""

    response_id: str
    reward: float
    tokens: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTimings:
    """Where the time of a scoring request went, in seconds."""

    queue_s: float
    tokenize_s: float
    forward_s: float


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a call to a server tells about it."""

    version: str
    """"" when it does not say."""
    clock_ahead_s: float | None
    """How far its clock is ahead of ours, give or take half of the round trip; None when it does not say."""
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class RewardModelInfo:
    """What a scorer says about a reward model it serves."""

    model_id: str
    revision: str
    tokenizer_sha256: str
    template_sha256: str
    max_tokens: int
    dtype: str
    max_pairs_per_request: int
    activation: str = "raw_logit"


class JobKind(StrEnum):
    """What a job does; also the name of its spec."""

    SUPERVISED_TRAINING = "supervised_training"
    REWARD_TRAINING = "reward_training"
    POLICY_TRAINING = "policy_training"
    EVALUATION = "evaluation"
    CALIBRATION = "calibration"
    DATASET_CHECK = "dataset_check"


class JobState(StrEnum):
    """Life of a job: WAITING -> PENDING -> RUNNING -> one of the three terminal states."""

    WAITING = "WAITING"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over; terminal states never change."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Where a running job stands. `remaining_s` is None while unknown."""

    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    remaining_s: float | None = None
    phase: str = ""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job leaves: a model (training) and figures."""

    model_id: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the queue knows it. `spec` is the JSON form of one of `madpo.jobs`' specs."""

    job_id: str
    kind: JobKind
    state: JobState
    spec: Mapping[str, Any]
    display_name: str = ""
    depends_on: tuple[str, ...] = ()
    attempt: int = 0
    create_time: float = 0.0
    start_time: float | None = None
    finish_time: float | None = None
    reason: str = ""
    result: JobResult | None = None
    cancel_requested: bool = False
    progress: JobProgress | None = None


@dataclass(frozen=True, slots=True)
class StateChange:
    """The job moved to `state`."""

    state: JobState
    attempt: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the run's log."""

    line: str


@dataclass(frozen=True, slots=True)
class CheckpointPublished:
    """A checkpoint of this step became real."""

    step: int


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job; `cursor` resumes a watch after it."""

    cursor: str
    create_time: float
    event: StateChange | JobProgress | LogLine | CheckpointPublished


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle: relative path, size and SHA-256 (hex)."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DatasetForm:
    """A form that rows of an upload had."""

    name: str
    rows: int
    """Of the file; a ranked list may have become several pairs."""
    columns: Mapping[str, str]
    """Our names, and where each was read from."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset in the object store, named by its content."""

    dataset_id: str
    display_name: str
    kind: DatasetKind
    rows: int
    size_bytes: int
    create_time: float
    columns: tuple[str, ...] = ()
    """Optional fields of `PreferencePair` that every row has, such as `reward_margin`."""
    forms: tuple[DatasetForm, ...] = ()
    """What an upload found: in its reply that upload, else the one that made the dataset."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory in the object store, named by its content."""

    model_id: str
    display_name: str
    kind: str
    """`causal_lm` or `reward`."""
    architecture: str
    size_bytes: int
    create_time: float
    files: tuple[FileEntry, ...]
    base_model_id: str | None = None
    """For an adapter: the model it belongs to."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint of a job: it has a manifest."""

    job_id: str
    step: int
    attempt: int
    create_time: float
    size_bytes: int
