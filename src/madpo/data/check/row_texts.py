"""The texts of dataset rows, by what they are in the row."""

from collections.abc import Iterator

from madpo.types import Completion, Content, DatasetRow, Message, PreferencePair, ResponseList


def responses(row: DatasetRow) -> dict[str, Content]:
    """The responses of a row by field; those of a list are numbered."""
    match row:
        case PreferencePair():
            return {"chosen": row.chosen, "rejected": row.rejected}
        case Completion():
            return {"completion": row.completion}
        case ResponseList():
            return {f"responses[{index}]": response for index, response in enumerate(row.responses)}
    return {}


def field_of(name: str) -> str:
    """`responses` for `responses[3]`."""
    return name.partition("[")[0]


def turns(content: Content) -> tuple[Message, ...]:
    """The messages; none of a plain text."""
    return () if isinstance(content, str) else content


def texts(content: Content) -> Iterator[str]:
    """All text of a content, with what was thought and the tools that were called."""
    if isinstance(content, str):
        yield content
        return
    for message in content:
        yield from filter(None, (message.thinking, message.reasoning_content))
        yield message.content
        for call in message.tool_calls:
            yield f"{call.name} {call.arguments}"


def text(content: Content) -> str:
    """The text of a content, messages joined by line breaks."""
    return content if isinstance(content, str) else "\n".join(texts(content))


def squeezed(content: Content) -> str:
    """The text without what people do not see as a difference: letter case, and how much white space there is."""
    return " ".join(text(content).casefold().split())
