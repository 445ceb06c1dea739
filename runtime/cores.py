"""Which cores the runners of a run compute on: each its own share, so none is in another's way.

They wait for each other twice in every layer, so the slowest of them sets the pace of all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from weft.runtime import runs

_CPUS = Path("/sys/devices/system/cpu")


class Share(NamedTuple):
    """What one runner gets."""

    threads: int
    cpus: frozenset[int] | None  # None: the kernel chooses, from moment to moment


def shares(count: int, threads: int | None, cpus: Collection[int], *, is_ours: bool) -> list[Share]:
    """Divide ``cpus``, neighbours adjacent, among ``count`` runners.

    ``threads`` is what the user wants of each, None: as many as there are cores for. Runners are
    held to cores only if there are several, if the user left it to us, and if the machine
    ``is_ours``: else somebody else has divided it already, or computes on the same cores.
    """
    each = len(cpus) // max(1, count)
    if threads is not None or count == 1 or not is_ours or each == 0:
        return [Share(threads or max(1, each), None)] * count
    ordered = list(cpus)
    return [
        Share(each, frozenset(ordered[index * each : (index + 1) * each])) for index in range(count)
    ]


def usable() -> list[int]:
    """Return the processors that this process may use, those of a core and of a chip adjacent."""
    return sorted(os.sched_getaffinity(0), key=lambda cpu: (*_place(cpu), cpu))


def is_machine_ours(run_dir: Path) -> bool:
    """Return whether nothing was set aside for others, and no other run of this user lives."""
    is_whole = len(os.sched_getaffinity(0)) == os.cpu_count()
    others = (path for base in runs.bases() for path in runs.runs(base) if path != run_dir)
    return is_whole and all(runs.is_dead(path) for path in others)


def pin(pid: int, share: Share) -> None:
    """Hold a process that has just been started, and the threads to come, to its cores."""
    if share.cpus is not None:
        with contextlib.suppress(ProcessLookupError):  # whoever watches it sees its end
            os.sched_setaffinity(pid, share.cpus)


def _place(cpu: int) -> tuple[int, int]:
    """Return the chip and the core of a processor: two may be one core's."""
    folder = _CPUS / f"cpu{cpu}" / "topology"
    try:
        chip = int((folder / "physical_package_id").read_text())
        return chip, int((folder / "core_id").read_text())
    except (OSError, ValueError):
        return 0, cpu
