"""Chooses each request's scheduler, where there are several."""
