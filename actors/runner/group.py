"""How the runners of one model find each other."""

from __future__ import annotations

from pathlib import Path

import torch

from weft.actors.runner.torch_engine import device_of
from weft.kernels.collectives import process_group, shared_memory
from weft.kernels.collectives.reference import Alone, Collectives
from weft.runtime.config import Config

# How long a rank may keep the others waiting. They start together and do the same things; what
# differs most is how long an adapter takes to come from disk.
TIMEOUT_S = 60.0


def join(config: Config, rank: int, folder: Path, *, first_device: int = 0) -> Collectives:
    """Return one rank's end of the group, once all have come to its private ``folder``.

    ``first_device`` is that of rank 0, where there are GPUs.
    Raises ``RankLost``, and ``UnsupportedModel`` if there is no device for it.
    """
    size, device = config.tensor_parallel_size, device_of(config, first_device + rank)
    if size == 1:
        return Alone()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif shared_memory.library() is not None:
        return shared_memory.join(folder, rank, size, timeout_s=TIMEOUT_S)
    return process_group.join(folder, rank, size, device=device, timeout_s=TIMEOUT_S)
