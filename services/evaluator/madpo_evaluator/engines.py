"""The engine that draws an evaluation's responses, as the settings say."""

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from madpo.models.device import precision_on
from madpo.models.merge import write_merged
from madpo.models.scores import inner_model
from madpo.sampling import vllm
from madpo.sampling.engine import SamplingEngine
from madpo.sampling.responses import end_ids
from madpo.sampling.transformers import TransformersEngine
from madpo.storage.references import ResolvedModel
from madpo_evaluator.models import Models
from madpo_evaluator.settings import EvaluatorSettings


def engine_version(settings: EvaluatorSettings) -> str:
    """The engine that is asked for, with the version of what it runs on: as part of a key."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{settings.engine}-{version(settings.engine)}")


def sampling_engine(
    settings: EvaluatorSettings,
    models: Models,
    policy: ResolvedModel,
    *,
    rows: int | None,
    max_tokens: int,
    scratch: Path,
    check: Callable[[], None],
) -> SamplingEngine:
    """The engine over a policy.

    Args:
        settings: Of the evaluator.
        models: Loaded.
        policy: Where the policy's files are.
        rows: Responses at work at a time, of the job; None where it does not say.
        max_tokens: Of the longest prompt with its response.
        scratch: For what an engine needs as files.
        check: Called before each step of the model.

    Raises:
        FailedPreconditionError: vLLM does not take the policy.
    """
    if settings.engine == "transformers":
        return TransformersEngine(models.policy, models.tokenizer, rows=rows, check=check)
    device = torch.device(models.policy.device)
    precision, directory, base = precision_on(device, settings.dtype), policy.directory, policy.base_directory
    if base is not None:
        directory = scratch / "merged-policy"
        write_merged(policy.directory, directory, base_directory=base, kind="causal_lm", exact=precision == "fp32")
    arguments = vllm.engine_arguments(
        directory,
        precision=precision,
        max_tokens=max_tokens,
        memory_share=settings.vllm_memory,
        on_gpu=device.type == "cuda",
        options=({} if rows is None else {"max_num_seqs": rows}) | settings.vllm_options,
    )
    engine, parameters = vllm.load_engine(arguments)
    ends = end_ids(models.tokenizer, inner_model(models.policy).generation_config.eos_token_id)
    return vllm.VllmEngine(engine, models.tokenizer, ends=ends, parameters=parameters, check=check)
