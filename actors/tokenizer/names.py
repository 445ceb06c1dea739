"""What the names that a request may use stand for."""

from __future__ import annotations

import difflib

from weft.actors.tokenizer.refusal import Refusal
from weft.runtime.messages import AdapterEntry, ModelEntry

# Names longer than this are cut in messages.
NAME_CHARACTERS_SHOWN = 128


class Names:
    """The base's name and the adapter store's latest catalog."""

    def __init__(self, base: ModelEntry) -> None:
        self._base = base
        self._adapters: dict[str, AdapterEntry] = {}

    def update(self, adapters: list[AdapterEntry], removed: list[str]) -> None:
        """Take over what a catalog says has changed."""
        for name in removed:
            self._adapters.pop(name, None)
        self._adapters |= {adapter.name: adapter for adapter in adapters}

    def is_unread(self, name: str) -> bool:
        """Whether a name stands for an adapter that has to be read before it can be resolved."""
        adapter = self._adapters.get(name)
        return adapter is not None and adapter.is_unread

    def has(self, name: str) -> bool:
        """Whether a name is an adapter's, even one that cannot be used."""
        return name in self._adapters

    def is_current(self, entry: AdapterEntry) -> bool:
        """Whether a name still means what this entry says."""
        return self._adapters.get(entry.name) is entry

    def adapter(self, name: str, param: str) -> AdapterEntry:
        """Return an adapter that has been read. Raises ``Refusal`` about the field ``param``."""
        adapter = self._adapters.get(name)
        if adapter is None:
            raise Refusal("model_not_found", self._unknown(name), param)
        if adapter.refused is not None:
            text = f"the adapter {name!r} cannot be used: {adapter.refused}"
            raise Refusal("adapter_refused", text, param)
        return adapter

    def entries(self) -> list[ModelEntry]:
        """Return every name that can be used, the base first."""
        return [
            self._base,
            *(
                ModelEntry(
                    name=adapter.name,
                    root=adapter.root,
                    parent=self._base.name,
                    digest=adapter.digest or None,
                    rank=adapter.rank or None,
                    created_s=adapter.created_s,
                    max_model_len=self._base.max_model_len,
                    defaults=adapter.defaults.summary if adapter.defaults else None,
                )
                for adapter in self._adapters.values()
                if adapter.refused is None
            ),
        ]

    def _unknown(self, model: str) -> str:
        known = [self._base.name, *self._adapters]
        near = difflib.get_close_matches(model[:NAME_CHARACTERS_SHOWN], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "the list of models has all names"
        return f"no model or adapter is named {model[:NAME_CHARACTERS_SHOWN]!r}; {hint}"
