"""A tokenizer that tells ids as text, so that an answer over HTTP can be checked token by token."""

import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def save(folder, vocabulary):
    """Give a model's folder a tokenizer whose token ``i`` is the text ``<i>``."""
    tokenizer = Tokenizer(models.WordLevel(dict(_pieces(vocabulary)), unk_token=piece(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\d+>"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    for old in ("chat_template.jinja", "added_tokens.json", "special_tokens_map.json"):
        (folder / old).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def piece(token):
    """Return a token's text."""
    return f"<{token}>"


def tokens(text):
    """Return the tokens that a text is made of."""
    return [int(number) for number in re.findall(r"<(\d+)>", text)]


def _pieces(vocabulary):
    return ((piece(token), token) for token in range(vocabulary))
