"""POST /v1/completions."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, Request, Response

from weft.gateway import keys
from weft.gateway.answer import Answer, Prompt
from weft.gateway.bodies import CompletionBody
from weft.gateway.responses import Choice, Json, respond
from weft.runtime.client import Asker, Refused, TokenLogprob

router = APIRouter()


@router.post("/v1/completions", response_model=None)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue one prompt or several, with the adapters that it names, or the base."""
    state = request.app.state
    sampling = body.sampling()
    choices = len(body.prompts) * int(sampling.get("n", 1))
    if choices > state.config.max_queued_requests:  # trying again would not help
        text = (
            f"prompt: {choices} choices in all are more than may wait here "
            f"({state.config.max_queued_requests}); send fewer prompts, or lower n"
        )
        raise Refused("invalid_value", text, "prompt")
    answer = Answer(
        state.client,
        [Prompt(prompt=prompt) for prompt in body.prompts],
        model=body.model,
        lora=body.adapters,
        asker=Asker(body.user, keys.tenant(request), body.priority or 0),
        sampling=sampling,
    )
    return await respond(request, answer, _CompletionFormat(body, state.config.base_name))


class _CompletionFormat:
    def __init__(self, body: CompletionBody, base_name: str) -> None:
        self.is_stream = bool(body.stream)
        self.include_usage = body.include_usage
        self._model = body.answering(base_name)
        self._has_logprobs = body.logprobs is not None
        self._offsets: Counter[int] = Counter()  # by choice: where its next token's text begins

    def first(self, answer: Answer, choice: int) -> Json | None:
        return None

    def chunk(self, answer: Answer, choice: int, text: str, logprobs: list[TokenLogprob]) -> Json:
        return self._response(answer, [self._choice(choice, text, logprobs, None)])

    def last(self, answer: Answer, choice: int, reason: str) -> Json:
        return self._response(answer, [self._choice(choice, "", [], reason)])

    def usage(self, answer: Answer) -> Json:
        return self._response(answer, []) | {"usage": answer.usage()}

    def whole(self, answer: Answer, choices: list[Choice]) -> Json:
        entries = [
            self._choice(index, choice.text, choice.logprobs, choice.reason)
            for index, choice in enumerate(choices)
        ]
        return self._response(answer, entries) | {"usage": answer.usage()}

    def _response(self, answer: Answer, choices: list[Json]) -> Json:
        return {
            "id": f"cmpl-{answer.request_id}",
            "object": "text_completion",
            "created": answer.created_s,
            "model": self._model,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, logprobs: list[TokenLogprob], reason: str | None
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs) if self._has_logprobs else None,
            "finish_reason": reason,
        }

    def _logprobs(self, choice: int, logprobs: list[TokenLogprob]) -> Json:
        offsets = []
        for entry in logprobs:
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(entry.token)
        return {
            "tokens": [entry.token for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [
                {token: logprob for token, _, logprob in entry.top} for entry in logprobs
            ],
            "text_offset": offsets,
        }
