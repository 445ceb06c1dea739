"""Turns what a client asks into token ids, limits and an adapter's identity."""
