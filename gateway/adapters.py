"""Adapters over HTTP: a resource of weft's own, and the calls of vLLM's and SGLang's clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from weft.gateway import errors
from weft.gateway.bodies import Text
from weft.gateway.responses import Json
from weft.runtime.client import Adapter, AsyncClient, Changed, Refused

router = APIRouter()


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AdapterBody(_Body):
    """What a name is to mean."""

    source: Text  # a PEFT folder inside adapter_roots, or a hub id or URL inside adapter_sources
    pinned: bool | None = None
    digest: Annotated[str | None, Field(description="that the content must have")] = None


class NamedAdapterBody(AdapterBody):
    """A new name, and what it is to mean."""

    name: Text
    replace: bool = False


class PinBody(_Body):
    """Whether an adapter stays in host memory, and on the device as well."""

    pinned: bool = True
    tier: Literal["host", "device"] = "host"


class VllmLoad(_Body):
    """The body of vLLM's load_lora_adapter."""

    lora_name: Text
    lora_path: Text
    load_inplace: bool = False
    is_3d_lora_weight: Annotated[bool, Field(description="of mixture-of-experts models")] = False


class VllmUnload(_Body):
    """The body of vLLM's unload_lora_adapter."""

    lora_name: Text
    lora_int_id: Annotated[int | None, Field(description="vLLM's own number, without effect")] = (
        None
    )


class SglangLoad(_Body):
    """The body of SGLang's load_lora_adapter."""

    lora_name: Text
    lora_path: Text
    pinned: bool = False
    lora_id: Annotated[str | None, Field(description="SGLang's own, without effect")] = None


class SglangUnload(_Body):
    """The body of SGLang's unload_lora_adapter."""

    lora_name: Text
    lora_id: Annotated[str | None, Field(description="SGLang's own, without effect")] = None


@router.get("/v1/adapters")
async def list_adapters(request: Request) -> Json:
    """Describe every adapter that has a name."""
    adapters = await _client(request).adapters()
    return {"object": "list", "data": [_entry(adapter) for adapter in adapters]}


@router.post("/v1/adapters")
async def add_adapter(body: NamedAdapterBody, request: Request) -> Json:
    """Let a new name mean the adapter of a source; with ``replace``, or an old one."""
    changed = await _client(request).load_adapter(
        body.name, body.source, replace=body.replace, pinned=body.pinned, digest=body.digest
    )
    return _changed(changed)


@router.post("/v1/adapters/{name:path}/pin")
async def pin_adapter(name: str, request: Request, body: PinBody | None = None) -> Json:
    """Keep an adapter in host memory, and perhaps on the device; or no longer."""
    body = body or PinBody()
    on_device = body.tier == "device"
    changed = await _client(request).pin_adapter(name, pinned=body.pinned, on_device=on_device)
    return _changed(changed)


@router.post("/v1/adapters/{name:path}/prefetch")
async def prefetch_adapter(name: str, request: Request) -> Json:
    """Read an adapter into host memory before it is asked for."""
    return _changed(await _client(request).prefetch_adapter(name))


@router.get("/v1/adapters/{name:path}")
async def show_adapter(name: str, request: Request) -> Json:
    """Describe one adapter."""
    [adapter] = await _client(request).adapters(name)
    return _entry(adapter)


@router.put("/v1/adapters/{name:path}")
async def put_adapter(name: str, body: AdapterBody, request: Request) -> Json:
    """Let a name mean the adapter of a source, whatever it meant before."""
    changed = await _client(request).load_adapter(
        name, body.source, replace=True, pinned=body.pinned, digest=body.digest
    )
    return _changed(changed)


@router.delete("/v1/adapters/{name:path}")
async def delete_adapter(name: str, request: Request) -> Json:
    """Forget a name; answered when nothing is left of what only it meant."""
    return {"name": name, **_changed(await _client(request).unload_adapter(name))}


@router.post("/v1/load_lora_adapter", response_model=None)
async def load_as_vllm(body: VllmLoad, request: Request) -> Response:
    """Load an adapter; ``load_inplace`` replaces what the name meant."""
    if body.is_3d_lora_weight:
        text = "is_3d_lora_weight: models with experts are not supported; leave it out"
        raise Refused("invalid_value", text, "is_3d_lora_weight")
    with _in_vllms_words():
        changed = await _client(request).load_adapter(
            body.lora_name, body.lora_path, replace=body.load_inplace
        )
    how = "is loaded already" if changed.outcome == "already_loaded" else "added successfully"
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' {how}.")


@router.post("/v1/unload_lora_adapter", response_model=None)
async def unload_as_vllm(body: VllmUnload, request: Request) -> Response:
    """Unload an adapter."""
    with _in_vllms_words():
        await _client(request).unload_adapter(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


@router.post("/load_lora_adapter", response_model=None)
async def load_as_sglang(body: SglangLoad, request: Request) -> Response:
    """Load an adapter, pinned or not; answered with what is loaded then."""
    client = _client(request)
    try:
        await client.load_adapter(body.lora_name, body.lora_path, pinned=body.pinned)
    except Refused as refused:
        return await _as_sglang(client, refused)
    return await _as_sglang(client, None)


@router.post("/unload_lora_adapter", response_model=None)
async def unload_as_sglang(body: SglangUnload, request: Request) -> Response:
    """Unload an adapter; answered with what is loaded then."""
    client = _client(request)
    try:
        await client.unload_adapter(body.lora_name)
    except Refused as refused:
        return await _as_sglang(client, refused)
    return await _as_sglang(client, None)


@contextmanager
def _in_vllms_words() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        words = {"name": "lora_name", "source": "lora_path", "replace": "load_inplace"}
        raise errors.in_words_of(refused, words) from None


def _client(request: Request) -> AsyncClient:
    client: AsyncClient = request.app.state.client
    return client


async def _as_sglang(client: AsyncClient, refused: Refused | None) -> Response:
    loaded = {a.name: a.root for a in await client.adapters() if a.refused is None}
    error = None if refused is None else refused.message
    json = {"success": refused is None, "error_message": error, "loaded_adapters": loaded}
    return JSONResponse(json, 200 if refused is None else 400)


def _changed(changed: Changed) -> Json:
    entries = [_entry(adapter) for adapter in changed.adapters]
    return {"outcome": changed.outcome, **(entries[0] if entries else {})}


def _entry(adapter: Adapter) -> Json:
    return {"object": "adapter", **adapter._asdict()}
