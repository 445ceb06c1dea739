"""weft beside other engines: the same model, adapters, prompts and precision, one after another.

Each module serves as its engine's own documentation says, by processes of its own.
"""
