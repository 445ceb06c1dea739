import pytest

from weft.gateway import errors
from weft.runtime.client import Disconnected, Failed, Refused


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Refused("model_not_found", "m", "model"), 404, "invalid_request_error", "model_not_found"),
        (Refused("adapter_refused", "m", "model"), 404, "invalid_request_error", "adapter_refused"),
        (Refused("invalid_value", "m", "n"), 400, "invalid_request_error", "invalid_value"),
        (
            Refused("context_length_exceeded", "m", "max_tokens"),
            400, "invalid_request_error", "context_length_exceeded",
        ),
        (Refused("queue_full", "m"), 429, "rate_limit_exceeded", "rate_limit_exceeded"),
        (Refused("draining", "m"), 503, "server_error", "service_unavailable"),
        (Disconnected("m"), 503, "server_error", "service_unavailable"),
        (Failed("m"), 500, "server_error", "engine_error"),
    ],
)  # fmt: skip
def test_each_refusal_has_openais_status_and_form(error, status, kind, code):
    found, json, _ = errors.of_exception(error)
    assert found == status
    assert json["error"].keys() == {"message", "type", "param", "code"}
    assert (json["error"]["type"], json["error"]["code"]) == (kind, code)
    assert "m" in json["error"]["message"]


def test_what_may_succeed_later_says_when():
    headers = errors.of_exception(Refused("queue_full", "m", None, 1.5))[2]
    assert headers == {"retry-after": "2", "retry-after-ms": "1500"}
    assert errors.of_exception(Disconnected("m"))[2]["retry-after"] == "5"
    assert errors.of_exception(Refused("invalid_value", "m"))[2] == {}


def test_a_mistake_of_our_own_is_none_of_these():
    with pytest.raises(KeyError):
        errors.of_exception(KeyError("x"))


def test_a_refusal_is_told_in_the_words_of_the_request():
    refused = Refused("invalid_value", "name: 'a' is taken", "name", 2.0)
    told = errors.in_words_of(refused, {"name": "lora_name"})
    assert (told.message, told.param) == ("lora_name: 'a' is taken", "lora_name")
    assert (told.code, told.retry_after_s) == ("invalid_value", 2.0)
    assert errors.in_words_of(refused, {"source": "lora_path"}) is refused
