"""What clients may send: OpenAI's fields, and those that vLLM and SGLang have added.

Types are checked here. Ranges are checked by the tokenizer, for every way into weft alike.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

# What fits into a message. Sensible limits are the tokenizer's to check.
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _check_encodable(value: str) -> str:
    # JSON can escape half of a surrogate pair, which no other encoding has.
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("it holds half of a surrogate pair, which is no character")
    return value


Text = Annotated[str, AfterValidator(_check_encodable)]

# Text and token ids of the prompts of one request.
PROMPTS_MAX = 128

# Of a field's name that is quoted in an error: a client may have made it up.
PARAM_CHARACTERS_MAX = 256

# Fields that other servers act on and weft does not, with values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_calls": (None, []),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}


# The same of vLLM and SGLang.
_NEUTRAL_EXTENSIONS: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": (),
    "ebnf": (),
    "include_reasoning": (True,),
    "json_schema": (),
    "length_penalty": (1,),
    "lora_path": (),
    "prompt_logprobs": (),
    "regex": (),
    "return_hidden_states": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "separate_reasoning": (True,),
    "spaces_between_special_tokens": (True,),
    "stream_reasoning": (True,),
    "structural_tag": (),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


def describe(error: Any) -> tuple[str, str | None]:
    """Return what is wrong with a body, from pydantic's account of it, and the field at fault."""
    place = [part for part in error["loc"] if part != "body"]
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}", None
    if error["type"] == "missing" and not place:
        return "the body is empty; send a JSON object", None
    steps = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    param = "".join(steps)[1 : PARAM_CHARACTERS_MAX + 1]
    if error["type"] == "extra_forbidden":
        return f"{param}: there is no such field{_hint(str(place[-1]))}", param
    if error["type"] == "unsupported":
        return error["msg"], error["ctx"]["param"]
    if error["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return f"{param or 'the body'} must be a JSON object", param or None
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return (f"{param}: {message}" if param else message), param or None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_neutral(self) -> _Body:
        for name, values in _NEUTRAL.items():
            if getattr(self, name, None) not in (None, *values):
                message = f"{name} is not supported; leave it out"
                raise PydanticCustomError("unsupported", message, {"param": name})
        return self


class StreamOptions(_Body):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # without effect


class Lora(_Body):
    """One of the adapters whose updates are added up."""

    name: Text
    scale: Annotated[float, Field(description="by which its update is multiplied")] = 1.0


class _Generation(_Body):
    """The fields that chats and completions share. None stands for a default everywhere."""

    model: Text | None = None  # None: the base
    max_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Integer | None = None
    seed: Integer | None = None
    stop: list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: Text | None = None

    # Of vLLM and SGLang.
    top_k: Integer | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Integer | None = None
    stop_token_ids: list[Integer] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    priority: Integer | None = None  # among the tenant's requests; lower is earlier

    lora: list[Lora] | None = None  # adapters instead of ``model``

    # Without effect on the answer.
    store: bool | None = None
    metadata: Any = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, body: Any) -> Any:
        """Take the defaults of other servers for what they are; refuse what weft would not do."""
        if not isinstance(body, dict):
            return body
        given = _NEUTRAL_EXTENSIONS.keys() & body.keys()
        for name in sorted(given):
            if body[name] is not None and body[name] not in _NEUTRAL_EXTENSIONS[name]:
                message = f"{name} is not supported; leave it out"
                raise PydanticCustomError("unsupported", message, {"param": name})
        return {name: value for name, value in body.items() if name not in given}

    @field_validator("stop", mode="before")
    @classmethod
    def _list_stops(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias")
    @classmethod
    def _check_tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or {}:
            if not (token.isascii() and token.isdigit() and len(token) < 18):
                raise ValueError(f"{token[:64]!r} is no token id")
        return value

    @model_validator(mode="after")
    def _check_stream_options(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            message = "stream_options is for streams; set stream to true or leave it out"
            raise PydanticCustomError("unsupported", message, {"param": "stream_options"})
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def adapters(self) -> list[dict[str, Any]] | None:
        """What the ingress protocol calls ``lora``."""
        return None if self.lora is None else [each.model_dump() for each in self.lora]

    def answering(self, base_name: str) -> str:
        """Return what answers show as their model."""
        if not self.lora:
            return base_name if self.model is None else self.model
        return "+".join(
            each.name if each.scale == 1 else f"{each.name}:{each.scale:g}" for each in self.lora
        )

    def sampling(self) -> dict[str, Any]:
        """Return the ingress protocol's Sampling, without what is left to its defaults."""
        given = {
            name: value
            for name in (
                "max_tokens", "temperature", "top_p", "n", "seed", "stop", "presence_penalty",
                "frequency_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens",
                "stop_token_ids", "ignore_eos", "skip_special_tokens",
            )
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        if self.logit_bias:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        if self.include_stop_str_in_output or self.no_stop_trim:
            given["include_stop"] = True
        return given


class ChatMessage(_Body):
    """One turn. What clients copy from answers is taken back, as far as it means something."""

    role: Text
    content: Annotated[Text | None, Field(validate_default=True)] = None
    name: Text | None = None
    tool_call_id: str | None = None  # without effect: it is for templates that show it
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Any = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        """Take a list of text parts for the text that they make up."""
        if not isinstance(value, list):
            return value
        texts = []
        for index, part in enumerate(value):
            match part:
                case {"type": "text", "text": str(text), **_rest}:
                    texts.append(text)
                case {"type": str(kind), **_rest} if kind != "text":
                    raise ValueError(f"part {index} is {kind[:64]!r}; only text is supported")
                case _:
                    raise ValueError(f"part {index} is no part; a text part has type and text")
        return "".join(texts)

    @field_validator("content")
    @classmethod
    def _check_content(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Take a turn without text for an empty one, if it may be one: an assistant may refuse."""
        if value is None and info.data.get("role") == "assistant":
            return ""
        if value is None:
            raise ValueError("it is missing; send text")
        return value

    def turn(self) -> dict[str, str]:
        """Return the ingress protocol's ChatMessage."""
        values = {"role": self.role, "content": self.content, "name": self.name}
        return {name: value for name, value in values.items() if value is not None}


class ChatBody(_Generation):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: Integer | None = None  # wins over max_tokens
    logprobs: bool | None = None
    top_logprobs: Integer | None = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None  # without effect, as there are no tools
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    web_search_options: Any = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs needs logprobs; set logprobs to true"
            raise PydanticCustomError("unsupported", message, {"param": "top_logprobs"})
        return self

    def sampling(self) -> dict[str, Any]:
        """Return the ingress protocol's Sampling."""
        given = super().sampling()
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return given

    @property
    def words(self) -> dict[str, str]:
        """What this body calls fields of the ingress protocol."""
        is_newer = self.max_completion_tokens is not None
        return {
            "logprobs": "top_logprobs",
            **({"max_tokens": "max_completion_tokens"} if is_newer else {}),
        }


class CompletionBody(_Generation):
    """POST /v1/completions. ``prompt`` is text, token ids, or a list of either."""

    prompts: Annotated[list[str | list[int]], Field(alias="prompt")]
    logprobs: Integer | None = None

    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    # OpenAI's own default, for completions only.
    COMPLETION_TOKENS: ClassVar[int] = 16

    @field_validator("prompts", mode="plain")
    @classmethod
    def _list_prompts(cls, value: Any) -> list[str | list[int]]:
        match value:
            case str() | [int(), *_]:
                prompts = [value]
            case []:
                raise ValueError("it is empty; send some text")
            case [*_] if len(value) > PROMPTS_MAX:
                raise ValueError(f"{len(value)} prompts; at most {PROMPTS_MAX} are taken")
            case _:
                prompts = value
        if isinstance(prompts, list) and all(map(_is_prompt, prompts)):
            return prompts
        raise ValueError("text, a list of token ids, or a list of either is needed")

    def sampling(self) -> dict[str, Any]:
        """Return the ingress protocol's Sampling."""
        given = super().sampling()
        given.setdefault("max_tokens", self.COMPLETION_TOKENS)
        if self.logprobs is not None:
            given["logprobs"] = self.logprobs
        return given


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        _check_encodable(value)
        return True
    return isinstance(value, list) and all(
        type(token) is int and -(2**63) <= token < 2**63 for token in value
    )


def _hint(name: str) -> str:
    """Return what may be meant by a name that one of the bodies does not have."""
    for other, endpoint in (
        (ChatBody, "/v1/chat/completions"),
        (CompletionBody, "/v1/completions"),
    ):
        if name in _names(other):
            return f" here; it is one of {endpoint}"
    near = difflib.get_close_matches(name[:64], _names(ChatBody) | _names(CompletionBody), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(kind: type[_Generation]) -> set[str]:
    return {field.alias or name for name, field in kind.model_fields.items()}
