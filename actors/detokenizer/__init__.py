"""Turns sampled token ids into whole characters, and ends sequences at their stop strings."""
