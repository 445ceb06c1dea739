"""Choosing the next token: filters, noise and the draw."""
