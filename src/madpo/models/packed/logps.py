"""Log-probs of responses and rewards of responses from packed rows."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from madpo.models.logps import ResponseGroup, ResponseLogps
from madpo.models.packed.head import head_of, token_logps
from madpo.models.packed.layout import PackedRow, pack
from madpo.models.scores import head_scores, inner_model

T = TypeVar("T")


class PackedLogps:
    """A `LogpsFunction` over one packed row: agrees with `padded_logps` up to rounding.

    Args:
        share: Run prompts once, however many responses they have.
    """

    def __init__(self, *, share: bool = True) -> None:
        self._share = share

    def __call__(self, model: Any, groups: Sequence[ResponseGroup], *, vocabulary: bool = False) -> ResponseLogps:
        """Log-probs of all responses; the model must be prepared by `use_packed_attention`."""
        inner = inner_model(model)
        row = pack(groups, share=self._share).to(next(model.parameters()).device)

        def compute() -> tuple[Tensor, Tensor]:
            head = head_of(inner)
            assert head is not None
            hidden = hidden_states(inner, row).index_select(0, row.predictors)
            return token_logps(head, hidden, row.targets, vocabulary=vocabulary)

        logps, log_sum_p2 = as_forward(inner, compute)
        return ResponseLogps(logps, row.tokens, log_sum_p2 if vocabulary else None)


def as_forward(model: Any, compute: Callable[[], T]) -> T:
    """Compute something as the forward pass of a model, so that weights which are split over ranks are whole meanwhile.

    Args:
        model: A transformers model. One whose weights are split has a method `as_forward`.
        compute: Gives tensors.
    """
    run: Callable[[Callable[[], T]], T] | None = getattr(model, "as_forward", None)
    return compute() if run is None else run(compute)


def packed_scores(model: Any, groups: Sequence[ResponseGroup], *, share: bool = True) -> Tensor:
    """Raw reward logits of all responses of the groups, in their order, [R]: those of `reward_scores`, up to rounding.

    The model must be prepared by `use_packed_attention`.
    """
    inner = inner_model(model)
    row = pack(groups, share=share).to(next(model.parameters()).device)
    return head_scores(inner, hidden_states(inner, row).index_select(0, row.ends))


def hidden_states(model: Any, row: PackedRow) -> Tensor:
    """Last hidden states of a row, [T, hidden size].

    Args:
        model: A transformers model prepared by `use_packed_attention`, without adapters around it.
        row: On the model's device.
    """
    states: Tensor = model.base_model(
        input_ids=row.input_ids, position_ids=row.position_ids, segments=row.segments, use_cache=False
    ).last_hidden_state
    return states[0]
