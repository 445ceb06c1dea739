import pytest
from pydantic import ValidationError

from weft.gateway.bodies import (
    PARAM_CHARACTERS_MAX,
    PROMPTS_MAX,
    ChatBody,
    CompletionBody,
    describe,
)

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def refusal(kind, body):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return describe(caught.value.errors()[0])


def test_what_is_not_said_is_left_to_the_model():
    assert ChatBody.model_validate(CHAT).sampling() == {}
    assert CompletionBody.model_validate({"prompt": "x"}).sampling() == {"max_tokens": 16}


def test_null_is_the_same_as_nothing():
    nothing = {name: None for name in ChatBody.model_fields if name != "messages"}
    assert ChatBody.model_validate(CHAT | nothing).sampling() == {}


def test_everything_that_is_said_is_passed_on():
    said = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": -3, "stop": ["a"],
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "top_k": 4, "min_p": 0.1,
        "repetition_penalty": 1.1, "min_tokens": 1, "stop_token_ids": [3], "ignore_eos": True,
        "skip_special_tokens": False,
    }  # fmt: skip
    assert ChatBody.model_validate(CHAT | said).sampling() == said


def test_adapters_are_passed_on_and_shown_as_the_model():
    lora = [{"name": "sql", "scale": 0.5}, {"name": "math"}]
    body = ChatBody.model_validate(CHAT | {"model": "base", "lora": lora})
    assert body.adapters == [{"name": "sql", "scale": 0.5}, {"name": "math", "scale": 1.0}]
    assert body.answering("base") == "sql:0.5+math"
    assert ChatBody.model_validate(CHAT | {"lora": []}).answering("base") == "base"
    assert ChatBody.model_validate(CHAT | {"model": "a+b"}).answering("base") == "a+b"


@pytest.mark.parametrize("scale", ["1", True, None])
def test_a_scale_is_a_number(scale):
    _, param = refusal(ChatBody, CHAT | {"lora": [{"name": "sql", "scale": scale}]})
    assert param == "lora[0].scale"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"logit_bias": {"17": -1}}, {"logit_bias": {17: -1.0}}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {}),
        ({"include_stop_str_in_output": True}, {"include_stop": True}),
        ({"no_stop_trim": True}, {"include_stop": True}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}, {}),
        ({"store": True, "metadata": {"a": "b"}, "service_tier": "auto"}, {}),
    ],
)
def test_chats_in_openais_words_are_passed_on_in_wefts(given, passed):
    assert ChatBody.model_validate(CHAT | given).sampling() == passed


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"temprature": 1}, "temprature: there is no such field; did you mean 'temp", "temprature"),
        ({"zzz": 1}, "zzz: there is no such field", "zzz"),
        ({"n": "2"}, "n: should be a valid integer", "n"),
        ({"n": True}, "n: should be a valid integer", "n"),
        ({"n": 1.5}, "n: should be a valid integer", "n"),
        ({"seed": 2**63}, "seed: should be less than", "seed"),
        ({"temperature": float("nan")}, "temperature: should be a finite number", "temperature"),
        ({"stop": 5}, "stop: should be a valid list", "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias: 'a' is no token id", "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias: '-1' is no token id", "logit_bias"),
        ({"user": "\ud800"}, "user: it holds half of a surrogate pair", "user"),
        ({"echo": False}, "echo: there is no such field here; it is one of /v1/comp", "echo"),
        ({"bad_words": ["a"]}, "bad_words is not supported; leave it out", "bad_words"),
        ({"use_beam_search": True}, "use_beam_search is not supported", "use_beam_search"),
        ({"tools": [{}]}, "tools is not supported; leave it out", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format is not", "response_format"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs", "top_logprobs"),
        ({"stream_options": {}}, "stream_options is for streams", "stream_options"),
        (
            {"stream": True, "stream_options": {"x": 1}},
            "stream_options.x: there",
            "stream_options.x",
        ),
        ({"messages": "Hi"}, "messages: should be a valid list", "messages"),
        ({"messages": [5]}, "messages[0] must be a JSON object", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: it is m", "messages[0].content"),
        (
            {"messages": [{"role": "tool", "content": None}]},
            "messages[0].content: it is missing; send text",
            "messages[0].content",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role: Field required", "messages[0].role"),
    ],
)
def test_what_is_wrong_is_named(changes, message, param):
    text, where = refusal(ChatBody, CHAT | changes)
    assert text.startswith(message)
    assert where == param


def test_what_other_servers_would_do_anyway_may_be_said():
    said = {
        "add_generation_prompt": True, "continue_final_message": False, "length_penalty": 1.0,
        "structured_outputs": None, "chat_template_kwargs": {}, "use_beam_search": False,
    }  # fmt: skip
    assert ChatBody.model_validate(CHAT | said).sampling() == {}


@pytest.mark.parametrize("body", [[], "x", 5, None])
def test_a_body_that_is_no_object_is_named(body):
    assert refusal(ChatBody, body) == ("the body must be a JSON object", None)


def test_a_refusal_names_the_field_that_was_sent():
    assert ChatBody.model_validate(CHAT).words == {"logprobs": "top_logprobs"}
    newer = ChatBody.model_validate(CHAT | {"max_completion_tokens": 0}).words
    assert newer["max_tokens"] == "max_completion_tokens"


def test_a_name_that_is_made_up_is_not_quoted_at_length():
    text, where = refusal(ChatBody, CHAT | {"x" * 100_000: 1})
    assert len(text) < 400
    assert where == "x" * PARAM_CHARACTERS_MAX


def test_no_body_at_all_is_named():
    error = {"type": "missing", "loc": ("body",), "msg": "Field required"}
    assert describe(error) == ("the body is empty; send a JSON object", None)


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": parts}]})
    assert body.messages[0].turn() == {"role": "user", "content": "ab"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {}}, "part 0 is 'image_url'; only text is supported"),
        ({"type": "text"}, "part 0 is no part"),
        ("text", "part 0 is no part"),
    ],
)
def test_parts_that_are_no_text_are_refused(part, message):
    text, where = refusal(ChatBody, {"messages": [{"role": "user", "content": [part]}]})
    assert message in text
    assert where == "messages[0].content"


def test_an_answer_can_be_sent_back_as_it_came():
    turn = {
        "role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    body = ChatBody.model_validate({"messages": [turn]})
    assert body.messages[0].turn() == {"role": "assistant", "content": "Hi"}
    refused = turn | {"content": None, "refusal": "I cannot."}
    body = ChatBody.model_validate({"messages": [refused]})
    assert body.messages[0].turn() == {"role": "assistant", "content": ""}
    called = turn | {"tool_calls": [{"id": "1"}]}
    assert "tool_calls is not supported" in refusal(ChatBody, {"messages": [called]})[0]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
        ([""], [""]),
    ],
)
def test_prompts_come_in_four_forms(prompt, prompts):
    assert CompletionBody.model_validate({"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        [],
        [1.5],
        [True],
        [1, "a"],
        {"a": 1},
        [None],
        [10**30],
        ["\ud800"],
        [["a"]],
        ["a"] * (PROMPTS_MAX + 1),
    ],
)
def test_other_prompts_are_refused(prompt):
    text, where = refusal(CompletionBody, {"prompt": prompt})
    assert text.startswith("prompt: ")
    assert where == "prompt"


@pytest.mark.parametrize("changes", [{"best_of": 2}, {"echo": True}, {"suffix": "x"}])
def test_what_completions_cannot_do_is_refused_by_name(changes):
    [name] = changes
    assert refusal(CompletionBody, {"prompt": "x"} | changes)[1] == name


def test_a_priority_is_a_number():
    assert ChatBody.model_validate(CHAT | {"priority": -3}).priority == -3
    assert refusal(CompletionBody, {"prompt": "x", "priority": "high"})[1] == "priority"
