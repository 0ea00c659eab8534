"""What a chat template promises, tried on a made-up conversation."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from madpo.data.check.report import TemplateCheck
from madpo.data.limited import within_limits
from madpo.data.tokenize import encode_texts, render_chat, shared_length
from madpo.data.turn_end import turn_end_id
from madpo.errors import InvalidPairError
from madpo.types import ChatOptions, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOOLS = (
    '[{"type":"function","function":{"name":"probe_tool","description":"Probes.",'
    '"parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]'
)
_SYSTEM, _USER, _ANSWER, _AGAIN, _LAST = (
    Message("system", "Speak of lanterns."),
    Message("user", "What is a harbour?"),
    Message("assistant", "A place for ships."),
    Message("user", "And a lighthouse?"),
    Message("assistant", "A lamp for them."),
)


@within_limits
def check_template(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    roles: Collection[str],
    has_tools: bool,
    ends: Collection[int] | None = None,
) -> tuple[TemplateCheck, ...]:
    """Try the template; nothing without one.

    Args:
        tokenizer: With the template.
        roles: Those that the data uses; a template need not know others.
        has_tools: Whether the data has tools.
        ends: Tokens at which the model stops to generate, as it comes; None where that is not known.
    """
    if not tokenizer.chat_template:
        return ()
    try:
        return tuple(_Probe(tokenizer, roles, has_tools, ends).checks())
    except InvalidPairError as error:
        return (TemplateCheck(name="renders a conversation", passed=False, detail=str(error)),)


class _Probe:
    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        roles: Collection[str],
        has_tools: bool,
        ends: Collection[int] | None,
    ) -> None:
        self._tokenizer, self._roles, self._has_tools, self._ends = tokenizer, roles, has_tools, ends
        self._prompt = (_USER, _ANSWER, _AGAIN)
        self._opened = self._render(self._prompt, opened=True)
        self._closed = self._render(self._prompt)
        self._whole = self._render((*self._prompt, _LAST))

    def checks(self) -> Iterator[TemplateCheck]:
        yield self._prefix()
        yield self._bos()
        yield self._end()
        yield self._opens_a_turn()
        yield self._leaves_a_turn_closed()
        yield self._keeps_what_is_said()
        if "system" in self._roles:
            yield self._keeps_the_system_message()
        if self._has_tools:
            yield self._shows_tools()

    def _prefix(self) -> TemplateCheck:
        opened, whole = self._ids(self._opened), self._ids(self._whole)
        passed = whole[: len(opened)] == opened
        detail = "the prompt's tokens begin those of prompt and response" if passed else "rendered again, it changes"
        return TemplateCheck(name="prompt is a prefix", passed=passed, detail=detail)

    def _bos(self) -> TemplateCheck:
        bos, ids = self._tokenizer.bos_token_id, self._ids(self._whole)
        if bos is None:
            return TemplateCheck(name="one BOS", passed=True, detail="the tokenizer has none")
        if ids.count(bos) > self._ids(self._render((_USER,))).count(bos):
            # ChatML often has the mark of a turn in BOS's place; then only a doubled one can be told.
            detail = f"{self._tokenizer.bos_token} begins every turn"
            return TemplateCheck(name="one BOS", passed=ids[:2] != [bos, bos], detail=detail)
        if bos not in ids:
            passed = self._tokenizer("")["input_ids"][:1] != [bos]
            detail = "the template writes none" + ("" if passed else ", the tokenizer puts one before plain text")
            return TemplateCheck(name="one BOS", passed=passed, detail=detail)
        passed = ids[0] == bos and ids.count(bos) == 1
        return TemplateCheck(
            name="one BOS", passed=passed, detail=f"{self._tokenizer.bos_token}, {ids.count(bos)} times"
        )

    def _end(self) -> TemplateCheck:
        end = _between(self._whole, _LAST.content, None).strip()
        eos = str(self._tokenizer.eos_token)
        first = turn_end_id(self._tokenizer)
        if self._ends is not None and first not in {None, self._tokenizer.eos_token_id, *self._ends}:
            detail = (
                f"a response ends with {self._tokenizer.convert_ids_to_tokens(first)}, at which generation does not "
                "stop by the model's settings; those of a policy trained on chats will name it"
            )
            return TemplateCheck(name="one EOS", passed=False, detail=detail)
        if end.count(eos) == 1:
            return TemplateCheck(name="one EOS", passed=True, detail=f"a response ends with {end}")
        # A turn may end with a token of its own; training names it as an end in the model's generation settings too.
        ids = self._ids(end)
        passed = len(ids) == 1 and ids[0] in self._tokenizer.added_tokens_decoder
        detail = f"a response ends with {end!r} where EOS is {eos}" if end else "a response ends with nothing"
        if passed:
            detail = f"a turn ends with {end}, which is not EOS ({eos}): a trained model is told to stop at it as well"
        return TemplateCheck(name="one EOS", passed=passed, detail=detail)

    def _opens_a_turn(self) -> TemplateCheck:
        # Some templates need no opening, for what a user says ends with a mark (Mistral); some put an EOS behind a
        # prompt that nobody answers (Phi). Then the answer itself must be what stands next.
        opened, closed = self._ids(self._opened), self._ids(self._closed)
        opening = self._tokenizer.decode(opened[shared_length(opened, closed) :])
        is_next = _between(self._whole, self._opened, None).lstrip().startswith(_LAST.content)
        passed = is_next or (self._opened.startswith(self._closed) and bool(opening))
        detail = f"{opening!r} behind a prompt" if opening else "none is needed: the answer stands next"
        if not passed:
            detail = "the answer's beginning would be part of the loss"
        return TemplateCheck(name="opens the assistant's turn", passed=passed, detail=detail)

    def _leaves_a_turn_closed(self) -> TemplateCheck:
        # Behind the first answer comes its end, then a user's turn; behind the last one nothing but the same end.
        behind_first = _between(self._whole, _ANSWER.content, _AGAIN.content)
        behind_last = _between(self._whole, _LAST.content, None)
        extra = behind_last[shared_length(behind_first, behind_last) :].strip()
        passed = not extra or extra not in _between(self._whole, _USER.content, _ANSWER.content)
        detail = "nothing is opened behind a response" if passed else f"{behind_last!r} stands behind a response too"
        return TemplateCheck(name="no generation prompt behind a response", passed=passed, detail=detail)

    def _keeps_what_is_said(self) -> TemplateCheck:
        missing = [turn.role for turn in (*self._prompt, _LAST) if self._whole.count(turn.content) != 1]
        detail = f"not once: {', '.join(missing)}" if missing else "every message is rendered once"
        return TemplateCheck(name="keeps what is said", passed=not missing, detail=detail)

    def _keeps_the_system_message(self) -> TemplateCheck:
        try:
            passed = self._render((_SYSTEM, _USER)).count(_SYSTEM.content) == 1
            detail = "it is rendered once" if passed else "it is left out, or rendered twice"
        except InvalidPairError as error:
            passed, detail = False, str(error)
        return TemplateCheck(name="keeps the system message", passed=passed, detail=detail)

    def _shows_tools(self) -> TemplateCheck:
        rendered = render_chat(self._tokenizer, (_USER,), ChatOptions(tools=_TOOLS), add_generation_prompt=True)
        passed = "probe_tool" in rendered
        detail = "a tool's name is rendered" if passed else "tools are not rendered"
        return TemplateCheck(name="shows tools", passed=passed, detail=detail)

    def _render(self, messages: Sequence[Message], *, opened: bool = False) -> str:
        return render_chat(self._tokenizer, messages, ChatOptions(), add_generation_prompt=opened)

    def _ids(self, text: str) -> list[int]:
        return encode_texts(self._tokenizer, [text], special_tokens=False)[0]


def _between(text: str, start: str, end: str | None) -> str:
    """What stands behind `start`, up to `end`; nothing where `start` was left out."""
    behind = text.partition(start)[2]
    return behind if end is None else behind.partition(end)[0]
