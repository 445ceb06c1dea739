"""The adapter store: validates adapters, names them by content, keeps them in host memory."""
