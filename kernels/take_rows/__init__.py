"""Rows of a matrix: embeddings, and the tokens that are sampled from."""
