"""What is asked of an engine under measurement."""

import random
from typing import NamedTuple

VOCABULARY = 400  # ids that every model here has


class Load(NamedTuple):
    """What is asked, all at once."""

    requests: int
    prompt_tokens: int
    output_tokens: int


def make_prompts(load, names):
    """(model, token ids) each; requests take turns with the adapters.

    Every call makes others, so that nothing is found in the prefix cache.
    """
    names = names or [None]
    return [
        (
            names[i % len(names)],
            [random.randrange(4, VOCABULARY) for _ in range(load.prompt_tokens)],
        )
        for i in range(load.requests)
    ]
