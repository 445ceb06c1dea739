"""What is wrong with an adapter."""

from __future__ import annotations


class BadAdapter(Exception):
    """An adapter that cannot be used. The message names the field or tensor and what to do."""
