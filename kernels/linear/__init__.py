"""Linear layers whose weights are prepared once, for the device they run on."""
