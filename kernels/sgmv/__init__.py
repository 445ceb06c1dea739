"""The LoRA update of a mixed batch: segmented gather matrix-vector products."""
