"""The operations of the forward pass, each beside the plain torch function that defines it."""
