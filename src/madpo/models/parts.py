"""Loading of a model of which every rank has its part: no rank ever holds a weight whole that is divided.

transformers builds a model without memory (on the meta device) and then reads its files tensor by tensor. Of a weight
that has become a `DTensor` in between it reads this rank's slice alone, and converts that.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.tensor import DTensor

from madpo.models.memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Divide = Callable[[nn.Module], None]
"""Makes DTensors of those parameters of a model without memory that are to be read in parts."""


def load_parts(
    model_class: Any, *, config: Any, divide: Divide, **options: Any
) -> "tuple[PreTrainedModel, dict[str, Any]] | None":
    """What `from_pretrained` of a model's class gives, with DTensors for parameters; all ranks must call.

    Args:
        model_class: Of transformers.
        config: The model's configuration.
        divide: Chooses what is divided.
        options: For `from_pretrained`; with the directory, and asking for the loading info.

    Returns:
        The model and the loading info. None, and the reason is logged, where the files cannot be read so.
    """
    try:
        model, info = _divided(model_class, divide).from_pretrained(config=config, **options)
        model.__class__ = model_class
        reason = _refusal(model)
    except Exception as error:  # what is wrong with the files is said by whoever reads them whole
        if is_out_of_memory(error):
            raise
        reason = str(error)
    if reason:
        logger.warning("each rank reads the whole model before it keeps its part: %s", reason)
        return None
    return model, info


def _divided(model_class: Any, divide: Divide) -> Any:
    """The class, with parameters that are divided from the moment a model is built."""

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        model_class.__init__(self, *arguments, **options)
        divide(self)

    return type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})


def _refusal(model: Any) -> str:
    """Why what was read cannot be relied on; "" where it can."""
    for conversion in getattr(model, "_weight_conversions", None) or ():
        operations = getattr(conversion, "operations", ())
        if bad := [type(each).__name__ for each in operations if not _keeps_rows_apart(each)]:
            return f"transformers makes its weights from others of the files ({', '.join(bad)})"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and parameter.to_local().is_meta:
            return f"{name} was not read"
    return ""


def _keeps_rows_apart(operation: Any) -> bool:
    """Whether it can be done to parts: experts are stacked along the dimension that is divided, and joined inside."""
    name, dim = type(operation).__name__, getattr(operation, "dim", 0)
    return (name == "MergeModulelist" and dim == 0) or (name == "Concatenate" and dim > 0)
