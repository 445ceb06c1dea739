"""The shapes of served models, as far as measurements need them."""

from typing import NamedTuple


class Site(NamedTuple):
    """Modules that share an input, and so one pair of launches."""

    name: str
    features: int  # columns of x
    widths: tuple[int, ...]  # columns of y, of each module

    @property
    def out(self):
        """Columns of y."""
        return sum(self.widths)

    @property
    def size(self):
        """Elements of an adapter's matrices here, for each rank."""
        return self.features * len(self.widths) + self.out


class Shape(NamedTuple):
    """A decoder of the Llama family."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocabulary: int

    @property
    def sites(self):
        """In the order in which a layer computes them."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            Site("qkv", self.hidden, (q, kv, kv)),
            Site("o", q, (self.hidden,)),
            Site("gate_up", self.hidden, (self.intermediate, self.intermediate)),
            Site("down", self.intermediate, (self.hidden,)),
        )

    @property
    def page_bytes(self):
        """Of a KV page of 16 tokens in 16 bits, which is what adapters lie in."""
        return 2 * 16 * self.kv_heads * self.head_dim * 2


SHAPES = {
    "Llama-3-8B": Shape(4096, 14336, 32, 8, 128, 32, 128256),
    "Qwen2.5-7B": Shape(3584, 18944, 28, 4, 128, 28, 152064),
    "tiny": Shape(160, 200, 4, 2, 32, 2, 512),  # for the interpreter
}
