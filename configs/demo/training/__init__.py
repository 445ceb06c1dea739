"""Training of the demonstration model: its tokenizer, base and four adapters, from nothing."""
