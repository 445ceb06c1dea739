"""What the ranks of a tensor-parallel group do together: sums, gathers, broadcasts."""
