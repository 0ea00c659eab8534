"""The part of a model that text goes through: of a model of images too the rest is neither run nor trained."""

from typing import Any

from torch import nn

from madpo.models.scores import inner_model


def outside_text(model: Any) -> set[nn.Module]:
    """Modules that text passes by, such as an image encoder and its projection; none in a model of text alone.

    Args:
        model: A transformers model, with or without adapters around it.
    """
    inner = inner_model(model)
    if inner.config.get_text_config() is inner.config:
        return set()
    body, text = inner.base_model, inner.get_decoder()
    inside = set(text.modules())
    return {module for module in body.modules() if module not in inside and text not in set(module.modules())}


def freeze_outside_text(model: Any) -> None:
    """Keep what text passes by as it is: without this the optimizer holds moments of weights that get no gradient."""
    for module in outside_text(model):
        module.requires_grad_(False)


def text_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but those that text passes by."""
    outside = {id(parameter) for module in outside_text(model) for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in outside]
