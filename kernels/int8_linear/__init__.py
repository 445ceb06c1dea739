"""Linear layers whose weights and inputs are rounded to bytes."""
