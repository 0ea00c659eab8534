"""Which pairs a reward model can read whole: found before the first step, so that a job can leave the others out."""

from collections.abc import Sequence
from pathlib import Path

from madpo.data.encode import EncodedRow
from madpo.data.encoding import RowEncoder
from madpo.data.limited import load_limited
from madpo.data.overlong import length
from madpo.ports import ObjectStore
from madpo.storage import bundle, keys
from madpo.storage.models import ModelStore
from madpo.types import Content, PreferencePair
from madpo.worker.phase import BeginPhase

_TEMPLATE_TOKENS = 512
"""More than a chat template writes around a prompt and a response, tools aside."""
_PHASE_ROWS = 1_000


def fetch_tokenizer(model_id: str, directory: Path, *, store: ObjectStore) -> Path:
    """What a stored model has beside its weights, verified. Raises NotFoundError, CorruptObjectError."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in ModelStore(store, directory).get(model_id).files:
        if not file.path.endswith(".safetensors") and "/" not in file.path:
            bundle.fetch_file(store, keys.model(model_id), file, directory / file.path)
    return directory


def longer_than(limit: int, pairs: Sequence[PreferencePair], directory: Path, *, phase: BeginPhase) -> list[int]:
    """Places of pairs of which a response with its prompt has more than `limit` tokens.

    Args:
        limit: What the reward model reads.
        pairs: Each is looked at; only those that may be too long are tokenized.
        directory: Of the reward model's tokenizer.
        phase: Counts pairs.
    """
    counting = phase("lengths for the reward model", len(pairs), unit="pairs")
    doubtful = []
    for place in range(len(pairs)):
        if _most_tokens(pairs[place]) > limit:
            doubtful.append(place)
        if (place + 1) % _PHASE_ROWS == 0:
            counting.advance(_PHASE_ROWS)
    if not doubtful:
        return []
    encoder = RowEncoder(directory, load_limited(directory))
    outcomes = encoder.encode(pairs[place] for place in doubtful)
    return [
        place
        for place, (_, outcome, _) in zip(doubtful, outcomes, strict=True)
        if isinstance(outcome, EncodedRow) and length(outcome.only([0, 1])) > limit
    ]


def _most_tokens(pair: PreferencePair) -> int:
    """No text has more tokens than bytes."""
    longest = max(_bytes(pair.chosen), _bytes(pair.rejected))
    return _bytes(pair.prompt) + longest + len(pair.options.tools or "") * 2 + _TEMPLATE_TOKENS


def _bytes(content: Content) -> int:
    if isinstance(content, str):
        return len(content.encode())
    calls = sum(len(call.name) + len(call.arguments) for turn in content for call in turn.tool_calls)
    thoughts = (turn.content + (turn.thinking or "") + (turn.reasoning_content or "") for turn in content)
    return calls + sum(len(text.encode()) for text in thoughts) + 16 * len(content)
