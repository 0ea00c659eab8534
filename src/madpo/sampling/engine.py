"""What draws responses from a policy; engines differ in what runs the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from madpo.data.tokenize import Encoded
from madpo.jobs.sampling import SamplingParameters
from madpo.types import PromptOnly


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response.

    `text` is decoded from the response's own tokens, special tokens left out: a leading space survives where the
    tokenizer keeps it in the token (byte-level BPE), and word-level tokenizers join their words by single spaces.
    """

    prompt_index: int
    sample: int
    encoded: Encoded
    """Prompt and response tokens; the response ends with EOS when `finished`."""
    text: str
    finished: bool
    """EOS was drawn before the token limit."""


class SamplingEngine(Protocol):
    """A policy that answers prompts."""

    def encode(self, prompts: Sequence[PromptOnly], *, max_new_tokens: int) -> list[list[int] | None]:
        """Token ids of every prompt, rendered with the policy's template where it is a chat.

        None where a prompt leaves no room for `max_new_tokens` in the policy's context.

        Raises:
            InvalidPairError: A prompt cannot be rendered; names its row.
            InvalidArgumentError: No prompt leaves room.
        """
        ...

    def sample(
        self, prompts: Sequence[list[int]], sampling: SamplingParameters, *, temperature: float, first: int = 0
    ) -> Iterator[Sequence[Response]]:
        """Draw `samples_per_prompt` responses to every prompt, in the order of prompts, then samples; batch by batch.

        The draws are a function of (seed, prompt, sample, position): policies that answer the same prompts share
        their random numbers. The temperatures of `sampling` are not looked at. The batches of the `first` responses,
        which were drawn before, are left out.
        """
        ...
