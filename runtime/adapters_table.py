"""Adapters as a table that can be read though there are thousands: the busiest first, by pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from weft.runtime.client import Adapter, Report

# A terminal's height, about. Whoever wants more says so.
ROWS = 50

DIGEST_DIGITS_SHOWN = 12

# As they are shown: of each adapter, where it is nearest to being used.
TIERS = ("device", "host", "disk", "refused")

_COLUMNS = (
    "NAME", "VERSION", "DIGEST", "RANK", "SIZE", "TIER", "PINNED", "REQUESTS", "TOTAL", "HITS",
    "QUEUE", "ROOT",
)  # fmt: skip

# Those of equal keys stay in the order in which they came to be known.
SORTS: dict[str, Callable[[Adapter], Any]] = {
    "use": lambda adapter: (-adapter.requests, -adapter.requests_total),
    "name": lambda adapter: adapter.name,
    "version": lambda adapter: -adapter.version,
    "rank": lambda adapter: -(adapter.rank or 0),
    "size": lambda adapter: -(adapter.size_bytes or 0),
    "tier": lambda adapter: TIERS.index(tier(adapter)),
    "queue": lambda adapter: -(adapter.queue_s_mean or 0.0),
}


class View(NamedTuple):
    """Which rows are shown."""

    match: str | None = None  # a pattern of names, with * and ?
    tier: str | None = None
    sort: str = "use"
    limit: int = ROWS  # 0: all
    offset: int = 0

    def chosen(self, adapters: Iterable[Adapter]) -> list[Adapter]:
        """Return those that match, in order."""
        match = self.match
        found = [
            adapter
            for adapter in adapters
            if (match is None or fnmatchcase(adapter.name, match))
            and self.tier in (None, tier(adapter))
        ]
        return sorted(found, key=SORTS[self.sort])

    def page(self, chosen: Sequence[Adapter]) -> Sequence[Adapter]:
        """Return those that are shown of them."""
        end = self.offset + self.limit if self.limit else None
        return chosen[self.offset : end]


def tier(adapter: Adapter) -> str:
    """Return where an adapter is nearest to being used."""
    return "refused" if adapter.refused else adapter.tier


def table(adapters: Sequence[Adapter], view: View | None = None) -> str:
    """Return lines of columns, what is wrong with those that cannot be used, and what is left out.

    HITS are requests by where the adapter lay when they came: on the device, in host memory, on
    disk. QUEUE is their mean time from acceptance to the first step.
    """
    view = view or View()
    chosen = view.chosen(adapters)
    shown = view.page(chosen)
    rows = [_COLUMNS, *map(_row, shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"{a.name} cannot be used: {a.refused}" for a in shown if a.refused is not None]
    if len(shown) < len(chosen):
        first, last = view.offset + 1, view.offset + len(shown)
        which = f"{first} to {last}" if shown else "none"
        lines.append(f"{which} of {len(chosen)}; --offset, --limit, --match and --tier show others")
    return "\n".join(lines)


def summary(adapters: Sequence[Adapter], report: Report) -> str:
    """Return how many adapters lie where, and what it takes to bring them there."""
    counts = {name: sum(tier(adapter) == name for adapter in adapters) for name in TIERS}
    lines = [
        f"{len(adapters)} adapters: {counts['device']} on the device, {counts['host']} in host "
        f"memory, {counts['disk']} on disk, {counts['refused']} refused"
    ]
    store = report.sections.get("adapters", {})
    if store:
        lines.append(
            f"host: {_size(store['loaded_bytes'])} of {_size(store['bytes_max'])}, "
            f"{store['evictions_total']:.0f} evicted, {_times(report, 'host')}"
        )
    for process, counters in report.sections.items():
        if "adapter_slots" in counters:
            whole = {name: f"{value:.0f}" for name, value in counters.items()}
            lines.append(
                f"device ({process}): {whole['adapters_resident']} of {whole['adapter_slots']} "
                f"slots, {whole['pages_adapters']} of {whole['pages']} pages, "
                f"{whole['adapter_evictions_total']} evicted, {_times(report, 'device')}"
            )
    return "\n".join(lines)


def _times(report: Report, name: str) -> str:
    loads = [load for load in report.loads if load["tier"] == name]
    count = sum(sum(load["seconds"]) for load in loads)
    what = "read" if name == "host" else "copied"
    if not count:
        return f"none {what}"
    mean_s = sum(load["seconds_sum"] for load in loads) / count
    return f"{count} {what} in {_duration(mean_s)} each"


def _row(adapter: Adapter) -> tuple[str, ...]:
    return (
        adapter.name,
        str(adapter.version),
        (adapter.digest or "-")[:DIGEST_DIGITS_SHOWN],
        "-" if adapter.rank is None else str(adapter.rank),
        "-" if adapter.size_bytes is None else _size(adapter.size_bytes),
        tier(adapter),
        "device" if adapter.pinned_on_device else "yes" if adapter.pinned else "no",
        str(adapter.requests),
        str(adapter.requests_total),
        "/".join(map(str, adapter.hits)) or "-",
        "-" if adapter.queue_s_mean is None else _duration(adapter.queue_s_mean),
        adapter.root,
    )


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g}{unit}" if size_bytes < 100 else f"{size_bytes:.0f}{unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f}GiB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}ms" if seconds < 1 else f"{seconds:.1f}s"
