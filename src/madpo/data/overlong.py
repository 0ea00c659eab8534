"""What becomes of rows that are longer than a training allows."""

from dataclasses import replace
from typing import get_args

from madpo.data.encode import EncodedRow
from madpo.data.loss_mask import counted_tokens, cut_mask
from madpo.jobs.training import Overlong

POLICIES: tuple[Overlong, ...] = get_args(Overlong)


def keep_whole(max_tokens: int, limit: int | None) -> str:
    """What to do that rows longer than `max_tokens` are kept whole, as part of a message.

    Args:
        max_tokens: Longest prompt plus response of the training.
        limit: What the model can read; None where nothing bounds it.
    """
    if limit is None or max_tokens < limit:
        return "raise max_tokens"
    return f"shorten them, as the model reads no more than {limit} tokens"


def other_policy(overlong: Overlong) -> str:
    """What else to ask of a training that refused long rows, or has none left, as part of its error."""
    if overlong == "error":
        return "let training.overlong drop or truncate them, as by --overlong drop"
    if overlong == "drop":
        return "let training.overlong truncate them, for without them no row is left"
    return f"take another training.overlong, for {overlong} leaves no row"


def length(row: EncodedRow) -> int:
    """Tokens of the longest prompt and response."""
    return len(row.prompt_ids) + max(map(len, row.responses), default=0)


def fit(row: EncodedRow, max_tokens: int, overlong: Overlong, *, bos_id: int | None) -> EncodedRow | None:
    """The row within `max_tokens`, or None where the policy leaves nothing to learn from.

    `truncate_prompt` keeps the end of the prompt, which the responses answer, and its BOS; every response stays whole.
    `truncate_response` keeps the prompt whole and at least one token of every response; what was cut has no EOS, so no
    end is learned where there was none. Responses that become equal, or of which no token counts, say nothing any more.

    Args:
        row: Of any length.
        max_tokens: Longest prompt plus response.
        overlong: `error` is the caller's to raise; here it leaves the row out like `drop`.
        bos_id: Of the tokenizer, where it has one.
    """
    if length(row) <= max_tokens:
        return row
    if overlong == "truncate_prompt":
        room = max_tokens - max(map(len, row.responses), default=0)
        return replace(row, prompt_ids=_end_of_prompt(row.prompt_ids, room, bos_id)) if room >= 1 else None
    if overlong == "truncate_response":
        return _cut_responses(row, max_tokens - len(row.prompt_ids))
    return None


def _cut_responses(row: EncodedRow, room: int) -> EncodedRow | None:
    responses = tuple(ids[:room] for ids in row.responses) if room >= 1 else ()
    masks = tuple(cut_mask(mask, room) for mask in row.masks)
    cut = replace(row, responses=responses, masks=masks if any(masks) else ())
    counts = all(counted_tokens(cut.mask(place), len(ids)) for place, ids in enumerate(responses))
    is_informative = len(set(map(tuple, responses))) == len(set(map(tuple, row.responses)))
    return cut if responses and counts and is_informative else None


def _end_of_prompt(ids: list[int], room: int, bos_id: int | None) -> list[int]:
    return [ids[0], *ids[len(ids) - room + 1 :]] if room >= 2 and ids[0] == bos_id else ids[-room:]
