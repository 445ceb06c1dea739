"""The pool of pages that KV and adapter weights share, and the order in which pages are taken back.

Ids only, no tensors. A page is free, or it has one owner: a sequence, a node of the prefix cache,
or an adapter. Sheng et al. 2023 (S-LoRA, "unified paging"): no side has a budget of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol


class Tenant(Protocol):
    """An owner of pages that may be idle: used by nobody, and kept as long as there is room."""

    @property
    def page_count(self) -> int:
        """Pages that it owns, a constant."""
        ...

    def evict(self) -> list[int]:
        """Cease to be, and return the pages."""
        ...


class Pages:
    """A fixed number of pages: free ones, and those that idle tenants would have to give up.

    All idle tenants are in one order, whatever they are; who became idle first is evicted first.
    A tenant that keeps its place is put in by its first idle moment and not moved by later ones.

    Invariants, checked by ``check``: free pages and those of all owners together are
    0 .. count - 1, each once; ``available`` counts the free and the idle ones.
    """

    def __init__(self, count: int) -> None:
        assert count > 0
        self.count = count
        self._free = list(range(count - 1, -1, -1))  # a stack: the last page freed is still warm
        self._order: OrderedDict[Tenant, bool] = OrderedDict()  # is it idle? First to go first.
        self._idle_pages = 0

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + self._idle_pages

    @property
    def idle(self) -> int:
        """Pages of idle tenants."""
        return self._idle_pages

    @property
    def free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @property
    def order(self) -> list[Tenant]:
        """Idle tenants, the one that would be evicted first first."""
        return [tenant for tenant, is_idle in self._order.items() if is_idle]

    def take(self, count: int) -> list[int]:
        """Return ``count`` pages to a new owner, after evicting whom it needs."""
        assert count <= self.available, f"{count} of {self.available} available pages"
        while len(self._free) < count:
            # Those in use that keep their place are few: as many as may be in use at once.
            self.evict(next(tenant for tenant, is_idle in self._order.items() if is_idle))
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: Iterable[int]) -> None:
        """Free what an owner had taken."""
        self._free.extend(pages)

    def make_idle(self, tenant: Tenant) -> None:
        """Let a tenant be evicted: last of all, or in the place that it kept."""
        assert not self._order.get(tenant), "it is idle already"
        self._order[tenant] = True
        self._idle_pages += tenant.page_count

    def make_busy(self, tenant: Tenant, *, keeps_place: bool) -> None:
        """Protect an idle tenant; ``keeps_place`` says whether it returns to its old place."""
        assert self._order[tenant], "it is in use already"
        self._idle_pages -= tenant.page_count
        if keeps_place:
            self._order[tenant] = False
        else:
            del self._order[tenant]

    def evict(self, tenant: Tenant) -> None:
        """Free the pages of an idle tenant."""
        assert self._order.pop(tenant), "it is in use"
        self._idle_pages -= tenant.page_count
        self._free.extend(tenant.evict())

    def check(self, *owned: Iterable[int]) -> None:
        """Assert the invariants; ``owned`` is what each kind of owner says that it owns.

        Linear in ``count``: for tests and idle moments.
        """
        everywhere = sorted(self._free)
        for pages in owned:
            everywhere += pages
        assert sorted(everywhere) == list(range(self.count)), "a page is lost or owned twice"
        assert self._idle_pages == sum(tenant.page_count for tenant in self.order)
