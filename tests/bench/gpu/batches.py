"""Which adapter each row of a batch has."""

import numpy as np

DISTRIBUTIONS = ("distinct", "uniform", "zipf", "identical")
ZIPF = 1.5  # the skew of Punica's measurements (Chen et al. 2023)
RANKS = (8, 16, 32, 64, 128)  # of adapters in turn


def draw(distribution, tokens, adapters):
    """Return the adapter of each row, sorted: int64 [tokens], of 0 to ``adapters - 1``."""
    rng = np.random.default_rng(0)
    match distribution:
        case "distinct":
            drawn = np.arange(tokens) % adapters
        case "uniform":
            drawn = rng.integers(adapters, size=tokens)
        case "zipf":
            share = np.arange(1, adapters + 1) ** -ZIPF
            drawn = rng.choice(adapters, size=tokens, p=share / share.sum())
        case "identical":
            drawn = np.zeros(tokens, dtype=np.int64)
    return np.sort(drawn)


def ranks_of(adapters):
    """Return the rank of each adapter."""
    return np.resize(RANKS, adapters)


def segments(rows):
    """Return where runs of equal rows begin, and the end; and what each run holds."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.append(starts, len(rows)), rows[starts]


def rotated(rows, shift, adapters):
    """Return the same batch of other adapters, ``shift`` further on."""
    return np.sort((rows + shift) % adapters)
