"""Collectives by torch.distributed: NCCL between GPUs, gloo between CPUs without a compiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from weft.kernels.collectives.peers import Peers
from weft.kernels.collectives.reference import RankLost

_FILE = "rendezvous"

# All ranks are processes of one machine: nobody else should be able to connect.
_INTERFACE = "lo"


class ProcessGroup:
    """One rank of torch.distributed's default group, or of another of the same ranks.

    A process has one default group at most. Both libraries compute each sum once and hand it to
    all ranks.
    """

    def __init__(
        self, peers: Peers, *, rank: int, size: int, group: dist.ProcessGroup | None = None
    ) -> None:
        """``group``: None is the default one."""
        self.rank = rank
        self.size = size
        self._peers = peers
        self._group = group

    def on_host(self, timeout_s: float) -> ProcessGroup:
        """Return a group of the same ranks for tensors of the host, and for another thread.

        All ranks ask for it. ``timeout_s`` bounds how long a rank may keep the others waiting.
        """
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return ProcessGroup(self._peers, rank=self.rank, size=self.size, group=group)

    def all_reduce(self, x: Tensor) -> None:
        """Replace ``x`` by the sum of every rank's."""
        self._do(x, lambda: dist.all_reduce(x, group=self._group))

    def gather(self, x: Tensor) -> Tensor | None:
        """Return [rows, size * columns] on rank 0, None on the others."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        self._do(x, lambda: dist.gather(x, parts, dst=0, group=self._group))
        return None if parts is None else torch.cat(parts, dim=1)

    def broadcast(self, x: Tensor) -> None:
        """Replace ``x`` by that of rank 0."""
        self._do(x, lambda: dist.broadcast(x, src=0, group=self._group))

    def _do(self, x: Tensor, collective: Callable[[], object]) -> None:
        if x.numel() == 0:  # on every rank
            return
        try:
            collective()
        except RuntimeError as error:
            lost = self._peers.first_ended()
            raise lost or RankLost(f"a rank is late, or cannot be reached: {error}") from error


def join(
    folder: Path, rank: int, size: int, *, device: torch.device, timeout_s: float
) -> ProcessGroup:
    """Return this rank's end, once all ranks have come to the same private ``folder``.

    ``timeout_s`` bounds how long a rank may keep the others waiting. Raises ``RankLost``.
    """
    for library in ("GLOO", "NCCL"):  # neither can be told in another way
        os.environ[f"{library}_SOCKET_IFNAME"] = _INTERFACE
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    try:
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=f"file://{folder / _FILE}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
        dist.all_gather(pids, torch.tensor([os.getpid()]))
    except RuntimeError as error:
        raise RankLost(f"rank {rank} cannot join the others: {error}") from error
    return ProcessGroup(Peers([int(pid) for pid in pids]), rank=rank, size=size)
