"""What a job asks of its reward models: one score for a text, from an architecture that can give one."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from madpo.jobs.base import REWARD, ModelReference, NeedsModel, Spec, references
from madpo.jobs.registry import kind_of
from madpo.model_files.configs import label_count, scoring_head
from madpo.model_files.transformers_classes import WITHOUT_CLASSIFIER
from madpo.types import Model
from madpo_gateway.checks.origin import model_config, origin_model
from madpo_gateway.checks.references import Shelves


async def unfit_reward_model(reference: ModelReference, *, shelves: Shelves) -> str:
    """Why the model that a reference leads to can be no reward model, and what to do; "" where it may be one."""
    model = await origin_model(reference, shelves)
    return "" if model is None else await asyncio.to_thread(_problem, model, shelves)


async def unfit_reward_models(spec: Spec, *, shelves: Shelves) -> AsyncIterator[tuple[str, str]]:
    """Fields whose model can be no reward model, which it is to be, and what to do about each."""
    leaves_reward_model = kind_of(spec).leaves_model in REWARD
    for reference in references(spec):
        if isinstance(reference.need, NeedsModel) and (reference.need.kinds == REWARD or leaves_reward_model):
            problem = await unfit_reward_model(cast(ModelReference, reference.target), shelves=shelves)
            if problem:
                yield reference.path, problem


def _problem(model: Model, shelves: Shelves) -> str:
    config = model_config(model, shelves)
    if config.get("model_type") in WITHOUT_CLASSIFIER:
        return (
            f"{model.model_id} is a {config['model_type']} model, of which transformers has no sequence classifier: "
            "give a reward model of another family, which reads the same text or messages"
        )
    if model.kind != "reward":
        return ""
    head = scoring_head(shelves.models.tensors(model.model_id))
    outputs = head[0] if head else None
    # The head of an adapter is loaded for one label, whatever the configuration of its base says.
    labels = label_count(config) if model.base_model_id is None else outputs
    if labels in (None, 1):
        return ""
    if outputs == 1:
        return (
            f"{model.model_id} has {labels} labels by its config.json (2 where that says nothing), and its head gives "
            '1 score: write "num_labels": 1 into the file and upload it again'
        )
    return (
        f"{model.model_id} has {labels} labels: a reward model has exactly one (num_labels: 1), a raw logit; train a "
        "reward model from its language model"
    )
