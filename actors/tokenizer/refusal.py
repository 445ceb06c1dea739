"""How a request is turned away: an exception inside the tokenizer, ``Refused`` on the wire."""

from __future__ import annotations

from weft.runtime.messages import Refused

# How long a client should wait before it tries again. A queue moves within a second; a process
# that drains is replaced within a few.
QUEUE_FULL_RETRY_S = 1.0
DRAINING_RETRY_S = 5.0

# A label, a model's name, a user: strings that every message about a request may repeat.
LABEL_CHARACTERS_MAX = 1024


class Refusal(Exception):
    """A request that cannot be served. The message says what is wrong and what to do."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def refused(self, label: str) -> Refused:
        """Return the message that tells the client."""
        return Refused(label, self.code, self.message, self.param, self.retry_after_s)


def need(ok: bool, param: str, message: str) -> None:
    """Refuse with ``invalid_value`` unless ``ok``; ``message`` says what to do about ``param``."""
    if not ok:
        raise Refusal("invalid_value", f"{param}: {message}", param)


def need_short(param: str, text: str | None) -> None:
    """Refuse a string that is longer than messages may repeat."""
    need(
        len(text or "") <= LABEL_CHARACTERS_MAX,
        param,
        f"at most {LABEL_CHARACTERS_MAX} characters are taken",
    )
