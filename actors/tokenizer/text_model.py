"""What a model's folder says about text: tokenizer, chat template, ends, sampling defaults."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from weft.actors.chat_templates import Chat
from weft.actors.tokenizer.generation_config import GenerationConfig, GenerationDefaults, parse
from weft.runtime.config import Config, ConfigError
from weft.runtime.messages import AddedToken


@dataclass(frozen=True)
class TextModel:
    """The text side of a model, or of an adapter of it (``adapter_texts``).

    Loaded once, by the tokenizer and by the detokenizer.
    """

    backend: Tokenizer
    template: str | None  # Jinja; None: the model takes no messages
    # Applies the template as transformers does. None: it is an adapter's, and rendered elsewhere.
    render: Callable[[Chat], str] | None
    special_tokens: dict[str, str]  # eos_token and its like, as a template knows them
    eos_token_ids: tuple[int, ...]
    defaults: GenerationDefaults
    max_model_len: int  # tokens of prompt and output together
    vocab_size: int  # rows of the embedding: every token id is below
    system_prompt: str | None = None  # of conversations without one
    stop: tuple[str, ...] = ()  # strings that end an answer, beside a request's
    added_tokens: tuple[AddedToken, ...] = ()  # that the backend has not, or has otherwise

    @staticmethod
    def load(config: Config) -> TextModel:
        """Read ``config.model``. Raises ``ConfigError`` with what to change."""
        folder = Path(config.model)
        model = _read_json(folder / "config.json")
        model = model.get("text_config", model)  # of a multimodal model
        generation = _generation(folder)
        tokenizer = _load_tokenizer(folder)
        template = _template(config, tokenizer)
        backend: Tokenizer = tokenizer.backend_tokenizer
        # tokenizer.json may carry both from training; a request must be encoded whole.
        backend.no_truncation()
        backend.no_padding()

        def render(chat: Chat) -> str:
            rendered: str = tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            return rendered

        eos = [*(generation.eos_token_ids or ()), *_ids(model.get("eos_token_id"))]
        eos += _ids(tokenizer.eos_token_id)
        return TextModel(
            backend=backend,
            template=template,
            render=render,
            special_tokens={name: str(token) for name, token in _special_tokens(tokenizer)},
            eos_token_ids=tuple(sorted(set(eos))),
            defaults=GenerationDefaults().overridden(generation.sampling),
            max_model_len=_max_model_len(config, model),
            vocab_size=int(model.get("vocab_size") or backend.get_vocab_size()),
        )


def keep_torch_out() -> None:
    """Have this process never import torch, which transformers does whenever it finds it.

    To be called first in a process of its own: with torch, start-up takes a second and 150 MB
    more. A None in sys.modules is Python's documented way to make an import fail.
    """
    assert "torch" not in sys.modules, "too late: torch is imported"
    sys.modules["torch"] = None  # type: ignore[assignment]
    # Or it says on every start that models cannot be used without torch.
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"


def _load_tokenizer(folder: Path) -> Any:
    # Takes half a second: only when it is needed.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(f"model: the tokenizer in {folder} cannot be loaded: {error}") from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model: the tokenizer in {folder} has no tokenizer.json; save a fast one beside it"
        )
    return tokenizer


def _special_tokens(tokenizer: Any) -> list[tuple[str, Any]]:
    # Lists of further ones have no place in a template.
    found = tokenizer.special_tokens_map.items()
    return [(name, token) for name, token in found if not isinstance(token, list)]


def _template(config: Config, tokenizer: Any) -> str | None:
    if config.chat_template:
        try:
            return Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {error}") from None
    if tokenizer.chat_template is None:
        return None
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(f"chat_template: {error}") from None
    return template


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.exists():
        return missing
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"model: {path} holds no JSON object")
    return values


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _generation(folder: Path) -> GenerationConfig:
    try:
        return parse(_read_json(folder / "generation_config.json", missing={}))
    except msgspec.ValidationError as error:
        raise ConfigError(f"model: generation_config.json: {error}") from None


def _max_model_len(config: Config, model: dict[str, Any]) -> int:
    positions = model.get("max_position_embeddings")
    if config.max_model_len is None:
        if positions is None:
            raise ConfigError("max_model_len: config.json has no max_position_embeddings; set it")
        return int(positions)
    if positions is not None and config.max_model_len > positions:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model has {positions} positions; "
            f"set it to {positions} or less"
        )
    return config.max_model_len
