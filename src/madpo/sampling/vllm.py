"""Responses drawn with vLLM, in this process: what it draws for a request depends on the request's own seed.

vLLM is imported when an engine is loaded, and only then.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from madpo.errors import UnavailableError
from madpo.jobs.sampling import SamplingParameters
from madpo.models.device import Precision
from madpo.models.vllm import DTYPES, Stepper, start_engine
from madpo.sampling.engine import Draw, Response, turns
from madpo.sampling.noise import seed_of
from madpo.sampling.responses import read_response

_TURN = 1024
"""Responses of a turn; how many of them are at work is vLLM's."""
_ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}
"""A prompt in parts would have its random numbers drawn back, which vLLM cannot do on a CPU."""
_CPU_BATCH_TOKENS = 4096


class VllmEngine:
    """Runs the policy with vLLM; implements `SamplingEngine`.

    The random numbers of a response are those of its seed, one set a token, as those of `TransformersEngine` are, but
    not the same ones: policies that are compared sharply are drawn from by the same engine.

    Args:
        engine: Of `load_engine`.
        tokenizer: The policy's.
        ends: Tokens that end a response, see `end_ids`.
        parameters: Makes vLLM's parameters of `request_options`.
        check: Called before each step; it may raise to end the sampling.
    """

    name = "vllm"

    def __init__(
        self,
        engine: Stepper,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: list[int],
        parameters: Callable[..., Any],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._tokenizer, self._ends = engine, tokenizer, ends
        self._parameters, self._check = parameters, check

    def sample(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParameters,
        *,
        temperature: float,
        drawn: Collection[Draw] = (),
    ) -> Iterator[list[Response]]:
        """See `SamplingEngine`."""
        for turn in turns(prompts, sampling.samples_per_prompt, responses=_TURN, drawn=drawn):
            found = self._draw(prompts, turn, sampling, temperature)
            yield [
                read_response(self._tokenizer, draw, prompts[draw.prompt_index], found[draw], self._ends)
                for draw in turn
            ]

    def _draw(
        self, prompts: Sequence[list[int]], turn: Sequence[Draw], sampling: SamplingParameters, temperature: float
    ) -> dict[Draw, list[int]]:
        found: dict[Draw, list[int]] = {}
        waiting: dict[str, Draw] = {}
        try:
            for draw in turn:
                options = request_options(draw, sampling, temperature=temperature, ends=self._ends)
                name = f"{draw.prompt_index}-{draw.sample}"
                waiting[name] = draw
                self._engine.add_request(
                    name, {"prompt_token_ids": prompts[draw.prompt_index]}, self._parameters(**options)
                )
            while self._engine.has_unfinished_requests():
                self._check()
                for output in self._engine.step():
                    if output.finished:
                        draw = waiting.pop(output.request_id)
                        found[draw] = _tokens(output, self._ends, most=sampling.max_new_tokens)
        finally:
            if waiting:
                self._engine.abort_request(list(waiting))
        if waiting:
            raise UnavailableError(f"vLLM ended {len(waiting)} of {len(turn)} requests without an answer")
        return found


def _tokens(output: Any, ends: Sequence[int], *, most: int) -> list[int]:
    """The tokens of a finished request. Raises UnavailableError where it ended otherwise than it was asked to."""
    (completion,) = output.outputs
    ids, reason = list(completion.token_ids), completion.finish_reason
    ended = bool(ids) and ids[-1] in ends
    if not ((reason == "stop" and ended) or (reason == "length" and len(ids) == most)):
        raise UnavailableError(f"vLLM ended a response of {len(ids)} tokens for the reason {reason!r}")
    return ids


def request_options(
    draw: Draw, sampling: SamplingParameters, *, temperature: float, ends: Sequence[int]
) -> dict[str, Any]:
    """The `SamplingParams` of one response: the whole vocabulary, and nothing but these tokens ends it."""
    return {
        "seed": seed_of(sampling.seed, draw) >> 1,  # vLLM keeps 63 bits
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "detokenize": False,
    }


def engine_arguments(
    directory: Path,
    *,
    precision: Precision,
    max_tokens: int,
    memory_share: float,
    on_gpu: bool,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Arguments of vLLM's `EngineArgs`.

    Args:
        directory: A whole model.
        precision: `fp32` or `bf16`.
        max_tokens: Of the longest prompt with its response.
        memory_share: Of the GPU's memory, that vLLM may take.
        on_gpu: Whether there is one.
        options: What else is asked for, which goes before all of it.
    """
    return {
        "model": str(directory),
        "skip_tokenizer_init": True,  # token ids go in and come out
        "generation_config": "vllm",  # no defaults of the model's
        "dtype": DTYPES[precision],
        "max_model_len": max_tokens,
        "gpu_memory_utilization": memory_share,
        "disable_log_stats": True,
        **({} if on_gpu else _ON_CPU | {"max_num_batched_tokens": max(max_tokens, _CPU_BATCH_TOKENS)}),
        **options,
    }


def load_engine(arguments: Mapping[str, Any]) -> tuple[Stepper, Callable[..., Any]]:
    """An engine of these `EngineArgs`, and what makes parameters of its requests.

    Raises:
        FailedPreconditionError: vLLM does not take the model or the arguments.
    """
    engine = start_engine(arguments)
    from vllm import SamplingParams

    return engine, SamplingParams
