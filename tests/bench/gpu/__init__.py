"""LoRA kernels and whole decode steps on a GPU; in small on a CPU, to see that it all works."""
