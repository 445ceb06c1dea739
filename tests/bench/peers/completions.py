"""Requests to servers with OpenAI's completions."""

from functools import partial

from tests.bench.peers import process, tokenizer
from tests.bench.peers.engine import Answer


def asker(url):
    """Return the ``Ask`` of a server at a URL."""
    return partial(_ask, f"{url}/v1/completions")


def _ask(url, prompts, tokens):
    bodies = [
        {
            "model": name or "base", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "skip_special_tokens": False,
        }
        for name, prompt in prompts
    ]  # fmt: skip
    return [_read(answer) for answer in process.post_all(url, bodies)]


def _read(answer):
    text = answer["choices"][0]["text"]
    return Answer(answer["usage"]["completion_tokens"], tokenizer.tokens(text))
