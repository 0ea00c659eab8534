"""`/api/models`: what is trained, and what came of it."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from madpo_console.callers import Asking

router = APIRouter(prefix="/api/models", tags=["models"])


@router.get("")
def list_models(asking: Asking) -> list[dict[str, Any]]:
    """Models, the one stored last first."""
    return [asdict(model) for model in asking.client.models.list()]


@router.get("/{model_id}")
def get_model(asking: Asking, model_id: str) -> dict[str, Any]:
    """One model, with its files and what it was made of."""
    return asdict(asking.client.models.get(model_id))


@router.delete("/{model_id}", status_code=204)
def delete_model(asking: Asking, model_id: str) -> None:
    """Delete a model that no job needs."""
    asking.client.models.delete(model_id)
