"""Measurements. Each prints a table; none asserts a time."""
