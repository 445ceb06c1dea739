"""openai-python, unchanged, against the demonstration."""

import json
import random

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoTokenizer

from tests.system.runs import ROOT

pytestmark = pytest.mark.system

MATH = [{"role": "user", "content": "What is 57 plus 68?"}]
ANSWER = "57 + 68. Ones: 7 + 8 = 15, write 5, carry 1. Tens: 5 + 6 + 1 = 12. Answer: 125"


def test_a_chat_is_answered(openai_client):
    response = openai_client.chat.completions.create(model="math", messages=MATH, temperature=0)
    [choice] = response.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert response.model == "math"
    assert response.object == "chat.completion"
    assert response.usage.total_tokens == (
        response.usage.prompt_tokens + response.usage.completion_tokens
    )
    assert response.id == f"chatcmpl-{response._request_id}"


def test_a_stream_has_its_chunks_in_order(openai_client):
    chunks = list(
        openai_client.chat.completions.create(
            model="math",
            messages=MATH,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *told, usage = chunks
    assert told[0].choices[0].delta.role == "assistant"
    assert told[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].choices[0].finish_reason == "stop"
    assert told[-1].choices[0].delta.content is None
    assert all(chunk.usage is None for chunk in told)
    assert usage.choices == []
    assert usage.usage.completion_tokens > 30
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_ends_with_done(http):
    body = {"model": "math", "messages": MATH, "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert "usage" not in chunk  # as it was not asked for


def test_every_answer_has_the_form_that_openai_declares(http):
    """The client itself takes anything: its types say what other clients rely on."""
    chat = {"model": "math", "messages": MATH, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    response = http.post("/v1/chat/completions", json=chat)
    ChatCompletion.model_validate_json(response.content, strict=True)
    chat |= {"stream": True, "stream_options": {"include_usage": True}}
    *events, _, _ = http.post("/v1/chat/completions", json=chat).text.split("\n\n")
    for event in events:
        ChatCompletionChunk.model_validate_json(event.removeprefix("data: "), strict=True)
    completion = {"model": "math", "prompt": "The", "logprobs": 2, "max_tokens": 4}
    response = http.post("/v1/completions", json=completion)
    Completion.model_validate_json(response.content, strict=True)
    for model in http.get("/v1/models").json()["data"]:
        Model.model_validate(model, strict=True)


def test_several_choices_differ_and_are_told_apart(openai_client):
    asked = {
        "model": "weft-demo", "messages": [{"role": "user", "content": "Tell me something."}],
        "n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 12,
    }  # fmt: skip
    response = openai_client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in response.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    streamed = ["", "", ""]
    for chunk in openai_client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts  # the same seed


def test_every_choice_of_a_stream_is_opened_and_closed_once(openai_client):
    stream = openai_client.chat.completions.create(
        model="weft-demo", messages=MATH, n=3, seed=5, temperature=1.0, max_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *told, usage = stream
    for index in range(3):
        own = [chunk.choices[0] for chunk in told if chunk.choices[0].index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [choice.finish_reason is None for choice in own] == [True] * (len(own) - 1) + [False]
    assert usage.choices == []
    assert usage.usage.prompt_tokens == len(rendered(MATH))  # once for all choices
    assert 3 <= usage.usage.completion_tokens <= 36


def rendered(messages):
    """The token ids of a chat, as transformers makes them."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/demo/model")
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_usage_counts_what_the_model_has_seen_and_said(openai_client):
    response = openai_client.chat.completions.create(
        model="math", messages=MATH, temperature=0, logprobs=True
    )
    assert response.usage.prompt_tokens == len(rendered(MATH))
    shown = len(response.choices[0].logprobs.content)
    # The token that ended the answer was generated too, but is no part of it.
    assert response.usage.completion_tokens == shown + 1


def test_a_stream_of_a_completion_ends_with_its_reason_and_usage(openai_client):
    raw = openai_client.completions.with_raw_response.create(
        model="sql", prompt=["The", "A"], max_tokens=5, temperature=0, stream=True,
        stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
    )  # fmt: skip
    *told, usage = raw.parse()
    for index in range(2):
        own = [chunk.choices[0] for chunk in told if chunk.choices[0].index == index]
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]
    assert usage.choices == []
    assert usage.usage.completion_tokens == 10
    assert {chunk.id for chunk in [*told, usage]} == {f"cmpl-{raw.headers['x-request-id']}"}


def test_a_stream_says_what_the_whole_answer_says(http):
    """Whatever is asked for: characters of several tokens, broken ones, stop strings, choices."""
    rng = random.Random(8)
    for seed in range(25):
        asked = {
            "model": rng.choice(["sql", "math", "weft-demo"]),
            "messages": [{"role": "user", "content": rng.choice(["Say something.", "ü€😀"])}],
            "seed": seed,
            "temperature": rng.choice([0, 1, 2]),
            "n": rng.choice([1, 3]),
            "max_tokens": 40,
            "stop": rng.choice([None, "e", ["th", "an"], "\ufffd", ["ab", "b", " "]]),
            "ignore_eos": rng.random() < 0.5,
            "skip_special_tokens": rng.random() < 0.5,
            "include_stop_str_in_output": rng.random() < 0.3,
            "logprobs": rng.random() < 0.5,
        }
        whole = http.post("/v1/chat/completions", json=asked).raise_for_status().json()
        choices = [
            {
                "text": choice["message"]["content"],
                "reason": choice["finish_reason"],
                "tokens": (choice["logprobs"] or {"content": []})["content"],
            }
            for choice in whole["choices"]
        ]
        assert gather(http, asked) == choices, asked


def gather(http, asked):
    """The choices of a streamed answer, put together."""
    choices = [{"text": "", "reason": None, "tokens": []} for _ in range(asked["n"])]
    *events, _, _ = http.post("/v1/chat/completions", json=asked | {"stream": True}).text.split(
        "\n\n"
    )
    for event in events:
        [part] = json.loads(event.removeprefix("data: "))["choices"]
        choice = choices[part["index"]]
        choice["text"] += part["delta"].get("content", "")
        choice["reason"] = part["finish_reason"]
        choice["tokens"] += (part["logprobs"] or {"content": []})["content"]
    return choices


def test_what_is_wrong_with_a_stream_is_said_before_it_begins(openai_client):
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="nope", messages=MATH, stream=True)


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(openai_client):
    response = openai_client.chat.completions.create(
        model="math", messages=MATH, temperature=0, stop=[". Tens", "never"]
    )
    assert response.choices[0].message.content == ANSWER[: ANSWER.index(". Tens")]
    assert response.choices[0].finish_reason == "stop"


def test_an_answer_is_cut_at_max_tokens(openai_client):
    response = openai_client.chat.completions.create(
        model="math", messages=MATH, temperature=0, max_tokens=500, max_completion_tokens=5
    )
    assert response.choices[0].finish_reason == "length"
    assert response.usage.completion_tokens == 5


def test_log_probabilities_make_up_the_text(openai_client):
    asked = {"model": "math", "messages": MATH, "logprobs": True, "top_logprobs": 3}
    response = openai_client.chat.completions.create(**asked, temperature=0)
    content = response.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == ANSWER
    for entry in content:
        assert entry.top_logprobs[0].token == entry.token  # greedy: the most likely one
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
    streamed = []
    for chunk in openai_client.chat.completions.create(**asked, temperature=0, stream=True):
        if chunk.choices[0].logprobs:
            entries = chunk.choices[0].logprobs.content
            streamed += entries
            assert "".join(entry.token for entry in entries) == chunk.choices[0].delta.content
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


def test_content_may_come_in_parts_and_answers_may_be_sent_back(openai_client):
    first = openai_client.chat.completions.create(model="math", messages=MATH, temperature=0)
    parts = [{"type": "text", "text": "What is 57"}, {"type": "text", "text": " plus 68?"}]
    again = openai_client.chat.completions.create(
        model="math", messages=[{"role": "user", "content": parts}], temperature=0
    )
    assert again.choices[0].message.content == ANSWER
    answer = first.choices[0].message.model_dump()
    openai_client.chat.completions.create(model="math", messages=[*MATH, answer, *MATH])


def test_prompts_are_completed_as_text_and_as_tokens(openai_client):
    response = openai_client.completions.create(
        model="weft-demo", prompt=["The module", [5, 6, 7]], n=2, max_tokens=4, logprobs=1, seed=1
    )
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    assert response.usage.completion_tokens == 16
    for choice in response.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert len(choice.logprobs.text_offset) == 4
    chunks = openai_client.completions.create(
        model="weft-demo", prompt="The module", max_tokens=4, temperature=0, stream=True
    )
    whole = openai_client.completions.create(
        model="weft-demo", prompt="The module", max_tokens=4, temperature=0
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_a_completion_has_openais_sixteen_tokens(openai_client):
    response = openai_client.completions.create(
        model="weft-demo", prompt="The", extra_body={"ignore_eos": True}
    )
    assert response.usage.completion_tokens == 16


def test_the_prefix_cache_shows_in_the_usage(openai_client):
    long = [{"role": "user", "content": "What is 57 plus 68? " * 8}]
    for _ in range(2):
        response = openai_client.chat.completions.create(model="math", messages=long, max_tokens=1)
    details = response.usage.prompt_tokens_details
    assert 0 < details.cached_tokens < response.usage.prompt_tokens


def test_models_are_listed_with_their_base(openai_client):
    models = openai_client.models.list().data
    assert [model.id for model in models] == ["weft-demo", "sql", "math", "function", "emotion"]
    assert [model.parent for model in models] == [None] + ["weft-demo"] * 4
    assert openai_client.models.retrieve("sql").root.endswith("configs/demo/adapters/sql")


@pytest.mark.parametrize(
    ("changes", "kind", "param", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"n": 0}, openai.BadRequestError, "n", "invalid_value"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens", "context_length_exceeded"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", "invalid_value"),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop", "invalid_value"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs", "invalid_value"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "invalid_value"),
        ({"stream_options": {}}, openai.BadRequestError, "stream_options", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(openai_client, changes, kind, param, code):
    with pytest.raises(kind) as caught:
        openai_client.chat.completions.create(**{"model": "math", "messages": MATH} | changes)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type", "status"),
    [
        ("GET", "/nowhere", b"", None, 404),
        ("GET", "/v1/models/nope", b"", None, 404),
        ("GET", "/v1/chat/completions", b"", None, 405),
        ("POST", "/v1/chat/completions", b"{", "application/json", 400),
        ("POST", "/v1/chat/completions", b"[1]", "application/json", 400),
        ("POST", "/v1/chat/completions", b"{}", "text/plain", 415),
        ("POST", "/v1/chat/completions", b" " * (17 * 2**20), "application/json", 413),
    ],
)
def test_errors_have_openais_form(http, method, path, content, content_type, status):
    headers = {"content-type": content_type} if content_type else {}
    response = http.request(method, path, content=content, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


def test_more_choices_than_may_ever_wait_are_refused_for_good(openai_client):
    with pytest.raises(openai.BadRequestError, match="16384 choices in all") as caught:
        openai_client.completions.create(model="sql", prompt=["a"] * 128, n=128, max_tokens=1)
    assert caught.value.param == "prompt"


def test_an_unknown_field_is_refused_with_the_nearest_name(http):
    body = {"model": "math", "messages": MATH, "temprature": 1}
    error = http.post("/v1/chat/completions", json=body).json()["error"]
    assert "did you mean 'temperature'?" in error["message"]
    assert error["param"] == "temprature"
