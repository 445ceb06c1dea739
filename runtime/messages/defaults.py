"""What an adapter's folder says about how to talk to it; it travels as part of other messages."""

from __future__ import annotations

import msgspec

from weft.runtime.messages.base import Part


class SamplingDefaults(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """What an adapter's requests get that do not say otherwise. A map on the wire.

    The fields mean what they do in ``Sampling``; None means that the adapter does not say.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


class DefaultsSummary(Part, frozen=True):
    """What an adapter's folder says about how to talk to it, in short."""

    chat_template: bool  # whether it has one of its own
    system_prompt: bool  # likewise
    stop: int  # strings that end an answer
    added_tokens: int  # beyond the base's
    sampling: SamplingDefaults


class AddedToken(Part, frozen=True):
    """A token that a tokenizer looks for in text before anything else (Hugging Face's AddedToken).

    ``special``: it controls, and is no text. ``single_word``: not inside of a word. ``lstrip`` and
    ``rstrip``: it takes the spaces beside it. ``normalized``: it is looked for in normalized text.
    """

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class AdapterDefaults(Part, frozen=True):
    """What an adapter's folder says about how to talk to it.

    It belongs to the name, not to the content, which may have several. None, and what is empty,
    stands for the base's.
    """

    chat_template: str | None = None  # Jinja
    system_prompt: str | None = None  # of conversations without one
    stop: list[str] = []
    sampling: SamplingDefaults = SamplingDefaults()
    eos_token_ids: list[int] | None = None  # instead of those that the base's files name
    special_tokens: dict[str, str] = {}  # such as eos_token, where they are not the base's
    added_tokens: list[AddedToken] = []  # those that the base's tokenizer has not, or has otherwise

    @property
    def summary(self) -> DefaultsSummary:
        """What clients are shown of it."""
        return DefaultsSummary(
            chat_template=self.chat_template is not None,
            system_prompt=self.system_prompt is not None,
            stop=len(self.stop),
            added_tokens=len(self.added_tokens),
            sampling=self.sampling,
        )
