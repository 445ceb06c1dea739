"""Products with matrices, and rows of them, that lie in granules of the arena."""
