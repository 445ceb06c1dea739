"""KV pages: which are free, which belong to one sequence, and which a prefix cache shares.

Ids only, no tensors. Every page is in exactly one of three places: the free stack, one sequence's
private list, or one node of the prefix cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Node:
    """A full page in the prefix cache: the tokens it holds, after all those of its ancestors."""

    page: int
    tokens: tuple[int, ...]
    parent: Node | None
    references: int = 0  # sequences whose page tables contain it
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Holding:
    """The pages of one sequence, in position order: shared ones first, then its own."""

    root: Node
    nodes: list[Node] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    shares: bool = True  # False once an equal page of someone else is in the cache

    @property
    def pages(self) -> list[int]:
        """The page table."""
        return [node.page for node in self.nodes] + self.own

    @property
    def count(self) -> int:
        """Pages held."""
        return len(self.nodes) + len(self.own)


class Pages:
    """A fixed number of pages, and a radix tree over those that hold known tokens.

    The tree has one root for each (salt, adapter digest): sequences of different adapters share
    nothing, those of one adapter share whatever their names. Its edges are whole pages of tokens.
    A node that no sequence references stays until its page is needed, least recently used first.

    Invariants, checked by ``check``:
      * free pages, own pages and nodes' pages together are 0 .. count-1, each once;
      * a node's references are the holdings that list it; a referenced node's parent is referenced;
      * the idle nodes are those without references, and children lie before their parents.
    """

    def __init__(self, count: int, page_tokens: int, *, caching: bool) -> None:
        assert count > 0
        assert page_tokens > 0
        self.count = count
        self.page_tokens = page_tokens
        self._caching = caching
        self._free = list(range(count - 1, -1, -1))  # a stack: the last page freed is still warm
        self._roots: dict[tuple[str, str | None], Node] = {}
        self._idle: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        self._holdings: set[Holding] = set()
        self._node_count = 0

    @property
    def available(self) -> int:
        """Pages that can be taken: free ones, and idle ones of the cache."""
        return len(self._free) + len(self._idle)

    @property
    def cached(self) -> int:
        """Pages that only the cache holds."""
        return len(self._idle)

    @property
    def free(self) -> int:
        """Pages that nothing holds."""
        return len(self._free)

    def find(self, salt: str, adapter: str | None, tokens: Sequence[int]) -> list[Node]:
        """Return the longest cached run of whole pages at the start of ``tokens``.

        The last token is left out: a sequence must compute at least one to sample from.
        """
        node = self._roots.get((salt, adapter))
        if node is None or not self._caching:
            return []
        found = []
        size = self.page_tokens
        for start in range(0, len(tokens) - size, size):
            node = node.children.get(tuple(tokens[start : start + size]))
            if node is None:
                break
            found.append(node)
        return found

    def cost(self, found: Iterable[Node], tokens: int) -> int:
        """Return how much ``available`` shrinks if ``tokens`` are held, starting from ``found``."""
        nodes = list(found)
        idle = sum(1 for node in nodes if node.references == 0)
        return self.pages_for(tokens) - len(nodes) + idle

    def pages_for(self, tokens: int) -> int:
        """Return how many pages hold this many tokens."""
        return -(-tokens // self.page_tokens)

    def hold(self, salt: str, adapter: str | None, found: list[Node], tokens: int) -> Holding:
        """Start a sequence on the pages of ``found``, with its own for the rest of ``tokens``."""
        root = self._roots.setdefault((salt, adapter), Node(-1, (), None))
        holding = Holding(root, found)
        for node in found:
            self._reference(node)
        self._holdings.add(holding)
        self.grow(holding, self.pages_for(tokens) - len(found))
        return holding

    def grow(self, holding: Holding, count: int) -> list[int]:
        """Append ``count`` pages to a sequence's own, and return them. ``available`` allowed it."""
        assert count <= self.available, f"{count} of {self.available} available pages"
        while len(self._free) < count:
            self._evict()
        taken = [self._free.pop() for _ in range(count)]
        holding.own += taken
        return taken

    def share(self, holding: Holding, tokens: Sequence[int], computed: int) -> None:
        """Let others use the full pages whose KV the first ``computed`` of ``tokens`` wrote.

        A page whose equal is in the cache already stays private while the sequence runs: a row's
        page table never changes.
        """
        if not self._caching or not holding.shares:
            return
        for index in range(len(holding.nodes), computed // self.page_tokens):
            parent, key = self._edge(holding, tokens, index)
            if key in parent.children:
                holding.shares = False
                return
            self._add(holding, parent, key)

    def release(self, holding: Holding, tokens: Sequence[int], computed: int) -> None:
        """End a sequence: its full pages stay in the cache while there is room, the rest is free.

        ``computed`` as for ``share``; 0 keeps nothing that is not in the cache already.
        """
        self._holdings.remove(holding)
        if self._caching:
            for index in range(len(holding.nodes), computed // self.page_tokens):
                parent, key = self._edge(holding, tokens, index)
                twin = parent.children.get(key)
                if twin is None:
                    self._add(holding, parent, key)
                else:
                    self._free.append(holding.own.pop(0))
                    self._reference(twin)
                    holding.nodes.append(twin)
        self._free.extend(reversed(holding.own))
        for node in reversed(holding.nodes):
            node.references -= 1
            if node.references == 0:
                self._idle[node] = None

    def check(self) -> None:
        """Assert the invariants. Linear in ``count``: for tests and idle moments."""
        nodes = list(self._walk())
        assert len(nodes) == self._node_count
        own = [page for holding in self._holdings for page in holding.own]
        everywhere = sorted(self._free + own + [node.page for node in nodes])
        assert everywhere == list(range(self.count)), "a page is lost or owned twice"
        references: dict[Node, int] = {}
        for holding in self._holdings:
            for node in holding.nodes:
                references[node] = references.get(node, 0) + 1
        order = {node: position for position, node in enumerate(self._idle)}
        for node in nodes:
            assert node.references == references.get(node, 0)
            assert (node.references == 0) == (node in order)
            parent = node.parent
            assert parent is not None
            if parent in order:
                assert order[node] < order[parent], "a parent would be evicted before its child"
        assert len(order) == sum(1 for node in nodes if node.references == 0)

    def _edge(
        self, holding: Holding, tokens: Sequence[int], index: int
    ) -> tuple[Node, tuple[int, ...]]:
        parent = holding.nodes[-1] if holding.nodes else holding.root
        start = index * self.page_tokens
        return parent, tuple(tokens[start : start + self.page_tokens])

    def _add(self, holding: Holding, parent: Node, key: tuple[int, ...]) -> None:
        node = Node(holding.own.pop(0), key, parent, references=1)
        parent.children[key] = node
        holding.nodes.append(node)
        self._node_count += 1

    def _reference(self, node: Node) -> None:
        if node.references == 0:
            del self._idle[node]
        node.references += 1

    def _evict(self) -> None:
        node, _ = self._idle.popitem(last=False)
        assert not node.children, "an idle node outlives its children"
        assert node.parent is not None
        del node.parent.children[node.tokens]
        self._node_count -= 1
        self._free.append(node.page)

    def _walk(self) -> Iterable[Node]:
        pending = [child for root in self._roots.values() for child in root.children.values()]
        while pending:
            node = pending.pop()
            pending.extend(node.children.values())
            yield node
