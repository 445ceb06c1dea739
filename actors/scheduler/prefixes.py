"""The KV pages of sequences: which belong to one, and which a prefix cache lets several share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from weft.actors.scheduler.pages import Pages

Uses = tuple[tuple[str, float], ...]
"""Adapters' digests, ascending, and scales; none: the base."""


class Identity(NamedTuple):
    """What KV depends on, beside the tokens."""

    salt: str
    uses: Uses
    start: int = 0  # tokens before it are the base's


# The tokens of a page; of the first page with an adapter's tokens also whose, and from where on.
Edge = tuple[int, ...] | tuple[Uses, int, tuple[int, ...]]


@dataclass(eq=False, slots=True)
class Node:
    """A full page in the prefix cache: the tokens it holds, after all those of its ancestors."""

    page: int
    edge: Edge  # from its parent
    parent: Node | None
    references: int = 0  # sequences whose page tables contain it
    children: dict[Edge, Node] = field(default_factory=dict)
    listed: list[dict[Node, None]] = field(default_factory=list)  # in which it is, while it exists

    @property
    def page_count(self) -> int:
        """It is one page."""
        return 1

    def evict(self) -> list[int]:
        """Leave the tree. Children are evicted before their parents."""
        assert self.references == 0
        assert not self.children, "an idle node outlives its children"
        assert self.parent is not None
        del self.parent.children[self.edge]
        for nodes in self.listed:
            del nodes[self]
        return [self.page]


@dataclass(eq=False, slots=True)
class Holding:
    """The pages of one sequence, in position order: shared ones first, then its own."""

    identity: Identity
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


class PrefixCache:
    """What sequences hold of the pool, and a radix tree over the pages whose tokens are known.

    The tree has one root for each salt. Its edges are whole pages of tokens. The first page with an
    adapter's tokens branches off from those of the base, at the root for all but activated
    adapters: sequences of different adapters share nothing behind it, nor do those that scale them
    differently; those of one adapter share whatever their names. A node that no sequence references
    is idle: it stays until its page is needed.

    Invariants, checked by ``check``:
      * a node's references are the holdings that list it; a referenced node's parent is referenced;
      * the idle nodes are those without references, and children would go before their parents.
    """

    def __init__(self, pages: Pages, page_tokens: int, *, caching: bool) -> None:
        assert page_tokens > 0
        self.page_tokens = page_tokens
        self._pages = pages
        self._caching = caching
        self._roots: dict[str, Node] = {}  # by salt
        self._branches: dict[str, dict[Node, None]] = {}  # by adapter: its first pages
        self._holdings: set[Holding] = set()

    def find(self, identity: Identity, tokens: Sequence[int]) -> list[Node]:
        """Return the longest cached run of whole pages at the start of ``tokens``.

        The last token is left out: a sequence must compute at least one to sample from.
        """
        node = self._roots.get(identity.salt)
        if node is None or not self._caching:
            return []
        found: list[Node] = []
        for index in range((len(tokens) - 1) // self.page_tokens):
            node = node.children.get(self._edge(identity, tokens, index))
            if node is None:
                break
            found.append(node)
        return found

    def cost(self, found: Iterable[Node], tokens: int) -> int:
        """Return how many available pages it takes to hold ``tokens``, starting from ``found``."""
        nodes = list(found)
        idle = sum(1 for node in nodes if node.references == 0)
        return self.pages_for(tokens) - len(nodes) + idle

    def pages_for(self, tokens: int) -> int:
        """Return how many pages hold this many tokens."""
        return -(-tokens // self.page_tokens)

    def hold(self, identity: Identity, found: list[Node], tokens: int) -> Holding:
        """Start a sequence on the pages of ``found``, with its own for the rest of ``tokens``."""
        root = self._roots.setdefault(identity.salt, Node(-1, (), None))
        holding = Holding(identity, root, found)
        for node in found:
            self._reference(node)
        self._holdings.add(holding)
        self.grow(holding, self.pages_for(tokens) - len(found))
        return holding

    def grow(self, holding: Holding, count: int) -> list[int]:
        """Append ``count`` pages to a sequence's own, and return them."""
        taken = self._pages.take(count)
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
            edge = self._edge(holding.identity, tokens, index)
            if edge in _last(holding).children:
                holding.shares = False
                return
            self._add(holding, edge)

    def release(self, holding: Holding, tokens: Sequence[int], computed: int) -> None:
        """End a sequence: its full pages stay in the cache while there is room, the rest is free.

        ``computed`` as for ``share``; 0 keeps nothing that is not in the cache already.
        """
        self._holdings.remove(holding)
        if self._caching:
            for index in range(len(holding.nodes), computed // self.page_tokens):
                edge = self._edge(holding.identity, tokens, index)
                twin = _last(holding).children.get(edge)
                if twin is None:
                    self._add(holding, edge)
                else:
                    self._pages.give_back([holding.own.pop(0)])
                    self._reference(twin)
                    holding.nodes.append(twin)
        self._pages.give_back(reversed(holding.own))
        for node in reversed(holding.nodes):
            node.references -= 1
            if node.references == 0:
                self._pages.make_idle(node)

    def drop(self, adapter: str) -> None:
        """Free what was computed with an adapter that no sequence uses, and forget it."""
        for branch in list(self._branches.pop(adapter, ())):
            # Every node before its children: from the end, each has none left.
            for node in reversed([branch, *_below(branch)]):
                self._pages.evict(node)

    def owned(self) -> Iterator[int]:
        """Yield every page of a sequence or of the tree, once."""
        for holding in self._holdings:
            yield from holding.own
        for node in self._nodes():
            yield node.page

    def check(self) -> None:
        """Assert the invariants. Linear in the pages: for tests and idle moments."""
        references: dict[Node, int] = {}
        for holding in self._holdings:
            for node in holding.nodes:
                references[node] = references.get(node, 0) + 1
        order = {tenant: position for position, tenant in enumerate(self._pages.order)}
        nodes = list(self._nodes())
        for node in nodes:
            assert node.references == references.pop(node, 0)
            assert (node.references == 0) == (node in order)
            parent = node.parent
            assert parent is not None
            if parent in order:
                assert order[node] < order[parent], "a parent would be evicted before its child"
            is_branch = node.edge != () and isinstance(node.edge[0], tuple)
            assert is_branch == bool(node.listed)
            assert all(node in nodes for nodes in node.listed)
        assert not references, "a sequence holds a node that is not in the tree"
        assert sum(isinstance(tenant, Node) for tenant in order) == sum(
            1 for node in nodes if node.references == 0
        )

    def _edge(self, identity: Identity, tokens: Sequence[int], index: int) -> Edge:
        """Return what leads to a sequence's page from the one before."""
        first = index * self.page_tokens
        page = tuple(tokens[first : first + self.page_tokens])
        begins = identity.uses and first <= identity.start < first + self.page_tokens
        return (identity.uses, identity.start, page) if begins else page

    def _add(self, holding: Holding, edge: Edge) -> None:
        parent = _last(holding)
        node = Node(holding.own.pop(0), edge, parent, references=1)
        parent.children[edge] = node
        if len(holding.nodes) == holding.identity.start // self.page_tokens:
            for digest, _ in holding.identity.uses:
                nodes = self._branches.setdefault(digest, {})
                nodes[node] = None
                node.listed.append(nodes)
        holding.nodes.append(node)

    def _reference(self, node: Node) -> None:
        if node.references == 0:
            self._pages.make_busy(node, keeps_place=False)
        node.references += 1

    def _nodes(self) -> Iterator[Node]:
        for root in self._roots.values():
            yield from _below(root)


def _last(holding: Holding) -> Node:
    """Return the node that the next page of a sequence hangs on."""
    return holding.nodes[-1] if holding.nodes else holding.root


def _below(root: Node) -> Iterator[Node]:
    """Yield every node under a root, parents before their children."""
    pending = list(root.children.values())
    while pending:
        node = pending.pop()
        pending.extend(node.children.values())
        yield node
