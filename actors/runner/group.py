"""How the runners of one model find each other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from weft.actors.runner.torch_engine import device_of
from weft.kernels.collectives import process_group, shared_memory
from weft.kernels.collectives.reference import Alone, Collectives
from weft.runtime.config import Config

# The least time for which a rank may keep the others waiting: they start together, but on a busy
# machine not all at once, and an adapter may take long to come from disk.
TIMEOUT_MIN_S = 60.0


class Ends(NamedTuple):
    """One rank's ends of two groups of the same ranks."""

    steps: Collectives
    loads: Collectives  # of the threads that load adapters, and of the host's memory


def join(config: Config, rank: int, folder: Path, *, first_device: int = 0) -> Ends:
    """Return one rank's ends, once all have come to their private ``folder``.

    ``first_device`` is that of rank 0, where there are GPUs.
    Raises ``RankLost``, and ``UnsupportedModel`` if there is no device for it.
    """
    size, device = config.tensor_parallel_size, device_of(config, first_device + rank)
    # The launcher's watchdog is to be first: it looks at every group, and not only at such.
    timeout_s = max(TIMEOUT_MIN_S, config.watchdog_timeout_s)
    if size == 1:
        return Ends(Alone(), Alone())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif shared_memory.library() is not None:
        return Ends(
            shared_memory.join(folder, rank, size, timeout_s=timeout_s),
            shared_memory.join(folder, rank, size, timeout_s=timeout_s, name="loads"),
        )
    steps = process_group.join(folder, rank, size, device=device, timeout_s=timeout_s)
    return Ends(steps, steps.on_host(timeout_s))
