"""Adapters that are not on this machine: how they get into a folder that the store can read."""
