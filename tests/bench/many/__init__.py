"""Thousands of adapters in one server."""
