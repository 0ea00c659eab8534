"""A reference that follows the policy: a second model, run beside it, whose weights are part of the checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from madpo.losses.apo_accel import extrapolate
from madpo.losses.method import ReferenceUpdate
from madpo.models.logps import ResponseLogps
from madpo.models.scores import inner_model
from madpo_trainer.fitted_rows import PolicyRow
from madpo_trainer.sharding import part_like
from madpo_trainer.stored_reference import ReferenceLogps

_REFERENCE, _PREVIOUS = "reference", "previous"


class MovingReference:
    """The reference of a method whose `reference_update` is not None; a `ReferenceSource`.

    Args:
        model: Starts as the initial policy, without adapters; is changed in place.
        policy: The model that is trained, sharded as `model` is. Its adapters are merged into weights before they are
            mixed, as low-rank factors cannot be.
        update: How the reference moves.
        run: Log-probs by a model.
        rows: Training rows.
        tensors: What `tensors` gave for the checkpoint that the run goes on from; empty at the start.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: nn.Module,
        update: ReferenceUpdate,
        *,
        run: Callable[..., ResponseLogps],
        rows: Sequence[PolicyRow],
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.model, self._policy, self._update, self._run, self._rows = model, policy, update, run, rows
        model.requires_grad_(False).eval()
        parameters = dict(model.named_parameters())
        self._weights = {name: parameters[name] for name in effective_weights(policy)}
        # As training left the policy at the last update, before it was moved on.
        self._previous = {name: w.detach().clone() for name, w in self._weights.items()} if update.extrapolation else {}
        for kind, weights in ((_REFERENCE, self._weights), (_PREVIOUS, self._previous)):
            for name, weight in weights.items():
                if tensors:
                    weight.copy_(part_like(tensors[f"{kind}.{name}"], weight))

    def logps(self, rows: Sequence[int]) -> ReferenceLogps:
        """Log-probs of the rows' responses under the present reference."""
        with torch.no_grad():
            found = self._run([self._rows[row].group for row in rows], model=self.model)
        return ReferenceLogps(found.logps, found.token_logps)

    @torch.no_grad()
    def advance(self, step: int, log_ratio: float) -> bool:
        """Move the reference where it is due; with extrapolation the policy moves as well. All ranks must call.

        Args:
            step: Optimizer steps done.
            log_ratio: Mean policy-to-reference log-ratio of the step's responses, the same on all ranks.

        Returns:
            Whether it has moved.
        """
        update = self._update
        if step % update.every or (update.kl_threshold is not None and log_ratio <= update.kl_threshold):
            return False
        if update.extrapolation:
            for name, weight in effective_weights(self._policy).items():
                trained = weight.clone()
                weight.copy_(extrapolate(trained, self._previous[name], alpha=update.extrapolation))
                self._previous[name].copy_(trained)
        for name, weight in effective_weights(self._policy).items():
            if update.rate == 1:
                self._weights[name].copy_(weight)
            else:
                self._weights[name].mul_(1 - update.rate).add_(weight, alpha=update.rate)
        return True

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, sharded as the models are."""
        kinds = ((_REFERENCE, self._weights), (_PREVIOUS, self._previous))
        return {f"{kind}.{name}": weight.detach() for kind, weights in kinds for name, weight in weights.items()}


@torch.no_grad()
def effective_weights(policy: Any) -> dict[str, Tensor]:
    """The weights that training moves, by the names a model without adapters has for them.

    Without adapters they are the parameters themselves; with LoRA new tensors: base + factors' product.
    """
    inner = inner_model(policy)
    if inner is policy:
        return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    return {
        f"{name}.weight": module.get_base_layer().weight + module.get_delta_weight(module.active_adapters[0])
        for name, module in inner.named_modules()
        if isinstance(module, LoraLayer)
    }
