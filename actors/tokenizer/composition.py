"""Which adapters a request asks for: none, one by its name, or several whose updates are added up.

What the sum means is PEFT's: the base, and of each adapter its update, multiplied by its scale.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from weft.actors.tokenizer.names import NAME_CHARACTERS_SHOWN, Names
from weft.actors.tokenizer.refusal import need
from weft.runtime.config import Config
from weft.runtime.messages import LORA_SCALE_MAX, AdapterEntry, AdapterUse, Lora, Submit

# Between adapters in ``model``, and between a name and its scale: "sql+formal:0.5".
_PLUS, _TIMES = "+", ":"
_SCALE = re.compile(r"-?\d{1,8}(\.\d{1,16})?", re.ASCII)


class Composition(NamedTuple):
    """What a request's adapters are."""

    uses: list[AdapterUse]  # by digest, ascending
    first: AdapterEntry | None  # that is named: its folder says how to talk to them; None: the base
    invocation_tokens: list[int]  # from whose last occurrence on they act; none: from the start
    rank: int  # the largest of theirs; 0 for the base
    name: str  # as the client spells it
    tenant: str  # whose share it is if the request does not say: the names, whatever their scales


class Compositions:
    """Resolves requests by the latest catalog."""

    def __init__(self, names: Names, config: Config) -> None:
        self._names = names
        self._base_name = config.base_name
        self._per_request = config.max_loras_per_request
        self._per_batch = config.max_loras_per_batch

    def check(self, submit: Submit) -> None:
        """Raise ``Refusal`` for a list that no catalog can make good. Cheap."""
        if submit.lora is None:
            return
        need(
            submit.model in (None, self._base_name),
            "model",
            "lora names the adapters; name the base here, or leave it out",
        )
        self._check_count(len(submit.lora), "lora")
        for lora in submit.lora:
            need(
                math.isfinite(lora.scale) and abs(lora.scale) <= LORA_SCALE_MAX,
                "lora",
                f"{lora.scale} is no scale; it must be within {LORA_SCALE_MAX:g} of 0",
            )

    def unread(self, submit: Submit) -> str | None:
        """Return the first name that has to be read before the request can be resolved.

        Raises ``Refusal``.
        """
        return next((lora.name for lora in self._asked(submit) if self._is_unread(lora)), None)

    def resolve(self, submit: Submit) -> Composition:
        """Return a request's adapters. Raises ``Refusal``."""
        param = "model" if submit.lora is None else "lora"
        asked = self._asked(submit)
        found: dict[str, tuple[Lora, AdapterEntry]] = {}  # by digest
        for lora in asked:
            need(
                lora.name != self._base_name,
                param,
                f"{lora.name!r} is the base, which every adapter adds to; leave it out",
            )
            entry = self._names.adapter(lora.name, param)
            other = found.setdefault(entry.digest, (lora, entry))[0]
            need(
                other is lora,
                param,
                f"{_shown(other)} and {_shown(lora)} are the same adapter; name it once, with the "
                f"sum of the scales",
            )
        used = {digest: pair for digest, pair in found.items() if pair[0].scale != 0}
        for lora, entry in used.values():
            need(
                entry.is_additive or (len(used) == 1 and lora.scale == 1),
                param,
                f"{_shown(lora)} rescales or replaces some of what the base has (DoRA, "
                f"modules_to_save, tokens of its own) and is no sum; use it alone and with scale 1",
            )
            need(
                not entry.invocation_tokens or len(used) == 1,
                param,
                f"{_shown(lora)} acts from its invocation on, and others at once; use it alone",
            )
        first = next((entry for _, entry in used.values()), None)
        invocations = [entry.invocation_tokens for _, entry in used.values()]
        name = submit.model or self._base_name
        return Composition(
            uses=[
                AdapterUse(digest, lora.scale, lora.name)
                for digest, (lora, _) in sorted(used.items())
            ],
            first=first,
            invocation_tokens=invocations[0] if invocations else [],
            rank=max((entry.rank for _, entry in used.values()), default=0),
            name=name if submit.lora is None else spell(asked) or name,
            tenant=_PLUS.join(sorted(lora.name for lora, _ in used.values())) or self._base_name,
        )

    def _asked(self, submit: Submit) -> list[Lora]:
        """Return the adapters that a request names, whether there are any of these names or not."""
        if submit.lora is not None:
            return submit.lora
        model = submit.model
        if model is None or model == self._base_name:
            return []
        if self._names.has(model):
            return [Lora(name=model)]
        parts = model.split(_PLUS)
        self._check_count(len(parts), "model")
        return list(map(self._part, parts))

    def _part(self, text: str) -> Lora:
        """Read a name, or a name with a scale. A name that is one wins."""
        name, _, scale = text.rpartition(_TIMES)
        if self._names.has(text) or not name or _SCALE.fullmatch(scale) is None:
            return Lora(name=text)
        found = float(scale)
        need(
            abs(found) <= LORA_SCALE_MAX,
            "model",
            f"{found:g} is no scale; it must be within {LORA_SCALE_MAX:g} of 0",
        )
        return Lora(name=name, scale=found)

    def _is_unread(self, lora: Lora) -> bool:
        return self._names.is_unread(lora.name)

    def _check_count(self, count: int, param: str) -> None:
        for limit, option in (
            (self._per_request, "max_loras_per_request"), (self._per_batch, "max_loras_per_batch"),
        ):  # fmt: skip
            need(
                count <= limit,
                param,
                f"{count} adapters; one request may have {limit} ({option})",
            )


def spell(loras: list[Lora]) -> str:
    """Return adapters as ``model`` may name them."""
    return _PLUS.join(
        lora.name if lora.scale == 1 else f"{lora.name}{_TIMES}{lora.scale:g}" for lora in loras
    )


def _shown(lora: Lora) -> str:
    return repr(lora.name[:NAME_CHARACTERS_SHOWN])
