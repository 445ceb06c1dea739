"""What clients ask of the store, and how they are told that it cannot be done."""

from __future__ import annotations

from typing import NamedTuple

from weft.runtime.messages import AdapterOperation, AdapterReply, Refused

# Of an adapter's name. It stands in every catalog, in logs and in metrics.
NAME_CHARACTERS_MAX = 256

NO_ROOM_RETRY_S = 1.0


class Asked(NamedTuple):
    """An operation, and who waits for its answer."""

    client: str
    operation: AdapterOperation

    def refuse(self, refusal: CannotDo) -> AdapterReply:
        """Return the message that tells the client."""
        refused = Refused(
            self.operation.label, refusal.code, str(refusal), refusal.param, refusal.retry_after_s
        )
        return AdapterReply(self.client, refused)


class CannotDo(Exception):
    """An operation that is refused; nothing has changed. The message says what to do."""

    def __init__(
        self, code: str, message: str, param: str | None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


def unknown(name: str) -> CannotDo:
    """Return the refusal of a name that means nothing."""
    shown = repr(name[:NAME_CHARACTERS_MAX])
    return CannotDo("model_not_found", f"no adapter is named {shown}; load it first", "name")


def no_adapter(base_name: str) -> CannotDo:
    """Return the refusal of the base's name where an adapter's is needed."""
    text = f"{base_name!r} is the base model, which is there as long as weft is; name an adapter"
    return CannotDo("model_not_found", text, "name")


def full() -> CannotDo:
    """Return the refusal of what host memory has no room for at the moment."""
    text = "host memory is full of adapters in use; try again later"
    return CannotDo("queue_full", text, None, NO_ROOM_RETRY_S)


def check_name(name: str, base_name: str) -> None:
    """Raise ``CannotDo`` unless an adapter may have this name."""
    if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        text = f"a name is 1 to {NAME_CHARACTERS_MAX} printable characters; choose another one"
        raise CannotDo("invalid_value", f"name: {text}", "name")
    if name == base_name:
        text = f"name: {name!r} is the base model's own name; choose another one"
        raise CannotDo("invalid_value", text, "name")
