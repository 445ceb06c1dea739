"""Turns what clients send into token ids and complete sampling parameters, or refuses it."""
