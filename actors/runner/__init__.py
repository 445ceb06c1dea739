"""Computes steps on one device. Holds tensors and no decisions."""
