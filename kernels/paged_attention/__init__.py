"""Attention over paged keys and values: prefill with prefix, chunks and decode in one call."""
