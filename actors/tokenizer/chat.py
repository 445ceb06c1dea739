"""Chats to token ids, by a template, which alone speaks in control tokens (``guarded``)."""

from __future__ import annotations

from weft.actors import chat_templates
from weft.actors.chat_templates import Chat
from weft.actors.tokenizer.guarded import GuardedTokenizer
from weft.actors.tokenizer.refusal import Refusal, need
from weft.actors.tokenizer.text_model import TextModel
from weft.runtime.messages import ChatMessage

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

# Who says how a conversation goes.
_SYSTEM_ROLES = frozenset({"system", "developer"})


class ChatEncoder:
    """Renders and encodes the chats of a model, or of an adapter."""

    def __init__(self, model: TextModel, tokenizer: GuardedTokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def encode(self, messages: list[ChatMessage]) -> list[int]:
        """Return the ids of a chat up to where the assistant's answer begins.

        Raises ``Refusal`` if the template does, or if there is none.
        """
        chat = self.guarded(messages)
        assert self._model.render is not None, "the template is rendered elsewhere"
        try:
            rendered = self._model.render(chat)
        except chat_templates.FAILURES as error:
            raise refused_by_template(str(error)) from None
        return self._tokenizer.encode_rendered(rendered)

    def guarded(self, messages: list[ChatMessage]) -> Chat:
        """Return a chat as the template gets it. Raises ``Refusal``."""
        if self._model.template is None:
            raise Refusal(
                "invalid_value",
                "messages: the model has no chat template; send a prompt, or configure "
                "chat_template",
                "messages",
            )
        for index, message in enumerate(messages):
            # Some templates build a control token from the role: "<|" + role + "|>".
            need(
                message.role in ROLES,
                f"messages[{index}].role",
                f"{message.role[:64]!r} is no role; use one of {', '.join(sorted(ROLES))}",
            )
        system = self._model.system_prompt
        if system is not None and not any(m.role in _SYSTEM_ROLES for m in messages):
            messages = [ChatMessage(role="system", content=system), *messages]
        return [self._tokenizer.guarded(message) for message in messages]


def refused_by_template(reason: str) -> Refusal:
    """Return the refusal of a chat that a template does not take."""
    return Refusal(
        "invalid_value", f"messages: the chat template refuses them: {reason}", "messages"
    )
