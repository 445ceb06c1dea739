"""generation_config.json: how a model, or an adapter, wants its tokens drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from weft.runtime.messages import SamplingDefaults


class GenerationDefaults(msgspec.Struct, frozen=True):
    """What a request gets that does not say otherwise: every value is filled in."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None  # None: as many as the context has room for

    def overridden(self, given: SamplingDefaults) -> GenerationDefaults:
        """Return these defaults, but for what is given."""
        return msgspec.structs.replace(self, **fields_of(given))


class GenerationConfig(NamedTuple):
    """What weft takes from the file, as vLLM and SGLang do."""

    sampling: SamplingDefaults
    eos_token_ids: list[int] | None  # None: it names none


def parse(values: dict[str, Any]) -> GenerationConfig:
    """Return what the file says. Raises ``msgspec.ValidationError`` for a value of another type."""
    # transformers' name for the length of an answer, as opposed to a context's.
    renamed = {"max_tokens": values.get("max_new_tokens")}
    given = {
        name: value
        for name in SamplingDefaults.__struct_fields__
        if (value := renamed.get(name, values.get(name))) is not None
    }
    # transformers says "greedy" in this way, vLLM and OpenAI by the temperature.
    if values.get("do_sample") is False:
        given["temperature"] = 0.0
    eos = msgspec.convert(values.get("eos_token_id"), int | list[int] | None)
    eos_token_ids = [eos] if isinstance(eos, int) else eos
    return GenerationConfig(msgspec.convert(given, SamplingDefaults), eos_token_ids)


def fields_of(given: SamplingDefaults) -> dict[str, Any]:
    """Return what is given by its name."""
    return {
        name: value for name, value in msgspec.structs.asdict(given).items() if value is not None
    }
