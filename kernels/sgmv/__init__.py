"""Segmented gather matrix-vector products: LoRA updates on a mixed batch."""
