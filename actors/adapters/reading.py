"""From a folder to a checked adapter: which files are read, in which order, and how far."""

from __future__ import annotations

from weft.actors.adapters import building, peft_config, safetensors
from weft.actors.adapters.adapter import Adapter
from weft.actors.adapters.base import BaseShapes
from weft.actors.adapters.errors import BadAdapter
from weft.actors.adapters.files import Files

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"


def read(
    files: Files, folder: str, base: BaseShapes, *, rank_max: int, whole_bytes_max: int
) -> Adapter:
    """Return a folder's adapter. Raises ``BadAdapter`` or ``FileError``.

    ``whole_bytes_max``: what it may have that is no update.
    """
    names = files.names(folder)
    if CONFIG_NAME not in names:
        raise BadAdapter(f"{CONFIG_NAME}: there is none in {folder}; check the path")
    if WEIGHTS_NAME not in names:
        if PICKLE_NAME in names:
            raise BadAdapter(
                f"{PICKLE_NAME}: pickled weights can run code and are never read; convert "
                f"them to {WEIGHTS_NAME}, as PEFT's save_pretrained does"
            )
        raise BadAdapter(f"{WEIGHTS_NAME}: there is none in {folder}; check the path")
    raw = files.read(folder, CONFIG_NAME, bytes_max=peft_config.CONFIG_BYTES_MAX)
    try:
        config = peft_config.parse(raw)
    except BadAdapter as error:
        raise BadAdapter(f"{CONFIG_NAME}: {error}") from None
    weights = files.read(
        folder, WEIGHTS_NAME, bytes_max=base.adapter_bytes_max(rank_max, whole_bytes_max)
    )
    try:
        tensors = safetensors.parse(weights)
        return building.build(
            config, tensors, base, rank_max=rank_max, whole_bytes_max=whole_bytes_max
        )
    except BadAdapter as error:
        raise BadAdapter(f"{WEIGHTS_NAME}: {error}") from None
