"""Writing keys and values into their pages."""
