"""Keeps the adapters: validated, content-addressed, in host memory."""
