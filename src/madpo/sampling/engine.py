"""What draws responses from a policy; engines differ in what runs the model."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from madpo.data.tokenize import Encoded
from madpo.jobs.sampling import SamplingParameters


class Draw(NamedTuple):
    """One response that is asked for."""

    prompt_index: int
    sample: int


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

    def sample(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParameters,
        *,
        temperature: float,
        drawn: Collection[Draw] = (),
    ) -> Iterator[Sequence[Response]]:
        """Draw `samples_per_prompt` responses to every prompt, some at a time, in the order of `turns`.

        The whole vocabulary is sampled: defaults that the model brings along (top-k, repetition penalty) are not used.
        The random numbers are a function of (seed, prompt, sample, position): policies that answer the same prompts
        share them, whatever is drawn beside. The temperatures of `sampling` are not looked at.

        Args:
            prompts: Token ids from `encode_prompts`.
            sampling: Seed, samples per prompt and token limit.
            temperature: Divisor of the logits; 0 takes the likeliest token each time.
            drawn: What was drawn before, and is left out.
        """
        ...


def turns(
    prompts: Sequence[list[int]], samples: int, *, responses: int, drawn: Collection[Draw] = ()
) -> Iterator[list[Draw]]:
    """The responses that are drawn together: neighbours by length, the longest prompts first.

    What is together depends on prompts and numbers alone, so that what goes on after a kill has the same company.

    Args:
        prompts: Token ids.
        samples: Of each prompt.
        responses: Of a turn.
        drawn: What is left out.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    draws = [Draw(index, sample) for index in order for sample in range(samples)]
    done = frozenset(drawn)
    for start in range(0, len(draws), responses):
        if left := [draw for draw in draws[start : start + responses] if draw not in done]:
            yield left
