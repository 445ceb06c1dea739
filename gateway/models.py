"""GET /v1/models: the base and its adapters."""

from __future__ import annotations

from fastapi import APIRouter, Request

from weft.gateway.responses import Json
from weft.runtime.client import Model, Refused

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Json:
    """List every name that ``model`` may take, the base first."""
    models = await request.app.state.client.models()
    return {"object": "list", "data": [_entry(model) for model in models]}


@router.get("/v1/models/{name:path}")
async def show_model(name: str, request: Request) -> Json:
    """Describe one name."""
    for model in await request.app.state.client.models():
        if model.name == name:
            return _entry(model)
    text = f"no model or adapter is named {name[:128]!r}; GET /v1/models lists them"
    raise Refused("model_not_found", text, "model")


@router.delete("/v1/models/{name:path}")
async def delete_model(name: str, request: Request) -> Json:
    """Unload an adapter, as OpenAI's clients delete a fine-tuned model."""
    await request.app.state.client.unload_adapter(name)
    return {"id": name, "object": "model", "deleted": True}


def _entry(model: Model) -> Json:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "weft",
        "root": model.root,
        "parent": model.parent,
        "max_model_len": model.max_model_len,
        "rank": model.rank,
        "digest": model.digest,
        "defaults": model.defaults,
    }
