"""`/v1/models`: stored models."""

from typing import Any

from fastapi import APIRouter

from madpo.types import Model
from madpo_console.callers import Asking

router = APIRouter(prefix="/v1/models", tags=["OpenAI: models"])


@router.get("")
def list_models(asking: Asking) -> dict[str, Any]:
    """All models, those brought here and those trained here."""
    return {"object": "list", "data": [_shape(model) for model in asking.client.models.list()]}


@router.get("/{model}")
def retrieve_model(asking: Asking, model: str) -> dict[str, Any]:
    """One model."""
    return _shape(asking.client.models.get(model))


@router.delete("/{model}")
def delete_model(asking: Asking, model: str) -> dict[str, Any]:
    """Delete a model that no job needs."""
    found = asking.client.models.get(model)
    asking.client.models.delete(found)
    return {"id": found.model_id, "object": "model", "deleted": True}


def _shape(model: Model) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(model.create_time),
        "owned_by": "madpo",
        "name": model.display_name,
        "kind": model.kind,
    }
