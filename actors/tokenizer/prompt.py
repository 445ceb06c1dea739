"""A request's prompt: its size is checked at once, its ids are made when it is its turn."""

from __future__ import annotations

from weft.actors.tokenizer.chat import ChatEncoder
from weft.actors.tokenizer.guarded import GuardedTokenizer
from weft.actors.tokenizer.refusal import Refusal, need
from weft.actors.tokenizer.rendering import Job
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.messages import Sampling, Submit

# Text longer than this for each token of the context is refused unencoded, so that nobody waits
# for a text that cannot fit. Prose has 3 to 5 characters a token.
CHARACTERS_PER_TOKEN_MAX = 16


class PromptEncoder:
    """Messages, text or token ids to token ids within the context of a model, or of an adapter."""

    def __init__(self, model: TextModel, tokenizer: GuardedTokenizer) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._chat = ChatEncoder(model, tokenizer)

    def check_size(self, submit: Submit) -> None:
        """Raise ``Refusal`` for a prompt that cannot fit, or that is none. Cheap."""
        need(
            (submit.messages is None) != (submit.prompt is None),
            "prompt",
            "send either messages or a prompt, and not both",
        )
        if submit.messages is not None:
            need(bool(submit.messages), "messages", "the list is empty; send at least one message")
            texts = [text for m in submit.messages for text in (m.role, m.content, m.name) if text]
            # A message is a token at least, even if it is empty.
            self._check_tokens("messages", len(submit.messages))
            self._check_characters("messages", sum(map(len, texts)))
        elif isinstance(submit.prompt, str):
            self._check_characters("prompt", len(submit.prompt))
        elif submit.prompt is not None:
            self._check_tokens("prompt", len(submit.prompt))

    def job(self, submit: Submit) -> Job | None:
        """Return what has to be rendered elsewhere before ``encode``, if so. Raises ``Refusal``."""
        if submit.messages is None or self.model.render is not None or self.model.template is None:
            return None
        chat = self._chat.guarded(submit.messages)
        return Job(self.model.template, self.model.special_tokens, chat)

    def encode(self, submit: Submit, rendered: str | None = None) -> list[int]:
        """Return the prompt's token ids, at least one. Raises ``Refusal``.

        ``rendered`` is the text that the request's ``job`` came to, if it has one.
        """
        if rendered is not None:
            ids = self._tokenizer.encode_rendered(rendered)
            need(bool(ids), "messages", "the chat template makes nothing of them")
        elif submit.messages is not None:
            ids = self._chat.encode(submit.messages)
            need(bool(ids), "messages", "the chat template makes nothing of them")
        elif isinstance(submit.prompt, str):
            ids = self._tokenizer.encode_text(submit.prompt)
            need(bool(ids), "prompt", "it is empty; send some text")
        else:
            ids = submit.prompt or []
            need(bool(ids), "prompt", "it is empty; send at least one token")
        limit = self.model.vocab_size
        low, high = min(ids), max(ids)
        need(
            low >= 0 and high < limit,
            "prompt" if submit.messages is None else "messages",
            f"{low if low < 0 else high} is no token of the model; ids are 0 .. {limit - 1}",
        )
        return ids

    def lora_start(self, submit: Submit, ids: list[int], invocation_tokens: list[int]) -> int:
        """Return where the last occurrence of an invocation begins in a prompt; 0 without one.

        There an activated LoRA begins to act, as in PEFT. Raises ``Refusal`` if the prompt does not
        have it: the base must not answer in the adapter's name.
        """
        if not invocation_tokens:
            return 0
        first, count = invocation_tokens[0], len(invocation_tokens)
        for start in range(len(ids) - count, -1, -1):
            if ids[start] == first and ids[start : start + count] == invocation_tokens:
                return start
        text = self.model.backend.decode(invocation_tokens, skip_special_tokens=False)
        param = "prompt" if submit.messages is None else "messages"
        raise Refusal(
            "invocation_missing",
            f"{param}: the adapter acts from its invocation on, and the prompt does not have it: "
            f"{text!r}, tokens {invocation_tokens}; put it where the adapter is to begin",
            param,
        )

    def output_tokens_max(self, wanted: Sampling, prompt_tokens: int) -> int:
        """Return how many tokens to generate. Raises ``Refusal`` if the context is too small."""
        context = self.model.max_model_len
        room = context - prompt_tokens
        output_tokens = max(wanted.max_tokens or 1, wanted.min_tokens)
        if output_tokens > room:
            raise Refusal(
                "context_length_exceeded",
                f"the prompt has {prompt_tokens} tokens and {output_tokens} are to be generated, "
                f"{prompt_tokens + output_tokens} in all, but the context holds {context}; "
                f"shorten the prompt or lower max_tokens",
                "messages" if wanted.max_tokens is None else "max_tokens",
            )
        if wanted.max_tokens is None and self.model.defaults.max_tokens is not None:
            return min(room, max(self.model.defaults.max_tokens, wanted.min_tokens))
        return wanted.max_tokens or room

    def _check_characters(self, param: str, characters: int) -> None:
        context = self.model.max_model_len
        limit = context * CHARACTERS_PER_TOKEN_MAX
        if characters > limit:
            raise Refusal(
                "context_length_exceeded",
                f"{param}: {characters} characters; for a context of {context} tokens at most "
                f"{limit} are taken; shorten the text",
                param,
            )

    def _check_tokens(self, param: str, tokens_min: int) -> None:
        context = self.model.max_model_len
        if tokens_min >= context:
            raise Refusal(
                "context_length_exceeded",
                f"{param}: at least {tokens_min} tokens, but the context holds {context} with the "
                f"answer; shorten the prompt",
                param,
            )
