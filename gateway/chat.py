"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from weft.gateway import errors, keys
from weft.gateway.answer import Answer, Prompt
from weft.gateway.bodies import ChatBody
from weft.gateway.responses import Choice, Json, respond
from weft.runtime.client import Asker, Refused, TokenLogprob

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a chat, with the adapters that it names, or the base."""
    state = request.app.state
    answer = Answer(
        state.client,
        [Prompt(messages=[message.turn() for message in body.messages])],
        model=body.model,
        lora=body.adapters,
        asker=Asker(body.user, keys.tenant(request), body.priority or 0),
        sampling=body.sampling(),
    )
    try:
        return await respond(request, answer, _ChatFormat(body, state.config.base_name))
    except Refused as refused:
        raise errors.in_words_of(refused, body.words) from None


class _ChatFormat:
    def __init__(self, body: ChatBody, base_name: str) -> None:
        self.is_stream = bool(body.stream)
        self.include_usage = body.include_usage
        self._model = body.answering(base_name)
        self._has_logprobs = bool(body.logprobs)

    def first(self, answer: Answer, choice: int) -> Json | None:
        return self._chunk(answer, choice, {"role": "assistant", "content": ""})

    def chunk(self, answer: Answer, choice: int, text: str, logprobs: list[TokenLogprob]) -> Json:
        return self._chunk(answer, choice, {"content": text}, logprobs=logprobs)

    def last(self, answer: Answer, choice: int, reason: str) -> Json:
        return self._chunk(answer, choice, {}, reason=reason)

    def usage(self, answer: Answer) -> Json:
        return self._head(answer, "chat.completion.chunk") | {
            "choices": [],
            "usage": answer.usage(),
        }

    def whole(self, answer: Answer, choices: list[Choice]) -> Json:
        return self._head(answer, "chat.completion") | {
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.reason,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": answer.usage(),
        }

    def _head(self, answer: Answer, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{answer.request_id}",
            "object": kind,
            "created": answer.created_s,
            "model": self._model,
            "system_fingerprint": None,
        }

    def _chunk(
        self,
        answer: Answer,
        choice: int,
        delta: dict[str, Any],
        *,
        reason: str | None = None,
        logprobs: list[TokenLogprob] | None = None,
    ) -> Json:
        entry = {
            "index": choice,
            "delta": delta,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": reason,
        }
        return self._head(answer, "chat.completion.chunk") | {"choices": [entry]}

    def _logprobs(self, logprobs: list[TokenLogprob]) -> Json | None:
        if not self._has_logprobs:
            return None
        content = [
            _token(entry.token, entry.token_bytes, entry.logprob)
            | {"top_logprobs": [_token(*top) for top in entry.top]}
            for entry in logprobs
        ]
        return {"content": content, "refusal": None}


def _token(token: str, token_bytes: bytes, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token_bytes)}
