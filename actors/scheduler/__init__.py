"""Decides what the runners compute next, and owns every request while it lives."""
