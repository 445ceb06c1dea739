import subprocess
import sys

import pytest

from tests.runtime.client_harness import Weft, events
from weft.runtime import messages
from weft.runtime.client.events import (
    Accepted,
    Asker,
    Disconnected,
    Finished,
    Model,
    Refused,
    Text,
    TokenLogprob,
)
from weft.runtime.endpoint import Lost
from weft.runtime.messages import METRIC_BUCKETS_S, ChatMessage, End, Lora, Sampling, TextLogprobs
from weft.runtime.topology import CLIENT, TOPOLOGY


@pytest.fixture
def weft():
    return Weft()


def accept(weft, request, *, first=1, choices=1):
    weft.say(messages.Accepted(request.label, "id" * 16, first, choices, 7))


def test_the_client_needs_pyzmq_and_msgpack_alone():
    code = (
        "import sys, weft.runtime.client; "
        "heavy = {'msgspec', 'yaml', 'torch', 'transformers', 'fastapi', 'uvloop', 'numpy'}; "
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_both_links_open(weft):
    assert weft.session.is_open
    assert weft.endpoints["tokenizer"].room("client") > 0


def test_everything_that_can_be_asked_arrives_as_it_was_meant(weft):
    sampling = {
        "max_tokens": 5, "min_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 3,
        "min_p": 0.1, "seed": -1, "n": 2, "stop": ["."], "stop_token_ids": [4],
        "include_stop": True, "ignore_eos": True, "skip_special_tokens": False, "logprobs": 2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1,
        "logit_bias": {17: -3.5},
    }  # fmt: skip
    assert set(sampling) == set(Sampling.__struct_fields__)
    chat = [{"role": "user", "content": "hi", "name": "Ann"}, {"role": "assistant"}]
    request = weft.session.submit(
        lambda: None, model="sql", messages=chat, prompt=None, sampling=sampling, asker=Asker("me"),
        lora=[{"name": "sql", "scale": 0.5}, {"name": "math"}],
    )  # fmt: skip
    weft.settle()
    turns = [ChatMessage(role="user", content="hi", name="Ann"), ChatMessage(role="assistant")]
    assert weft.heard == [
        messages.Submit(
            request.label,
            "sql",
            turns,
            None,
            Sampling(**sampling),
            "me",
            lora=[Lora(name="sql", scale=0.5), Lora(name="math")],
        )
    ]


def test_a_request_may_name_its_tenant_and_its_priority(weft):
    weft.session.submit(
        lambda: None,
        model=None,
        messages=None,
        prompt="x",
        sampling={},
        asker=Asker(tenant="ann", priority=-3),
    )
    weft.settle()
    assert (weft.heard[0].tenant, weft.heard[0].priority) == ("ann", -3)


def test_a_prompt_may_be_any_sequence_of_tokens(weft):
    weft.ask(prompt=range(3))
    assert weft.heard[0].prompt == [0, 1, 2]


def test_an_answer_is_accepted_told_and_finished(weft):
    request = weft.ask()
    accept(weft, request)
    assert events(request) == [Accepted("id" * 16, 7, 1)]
    weft.say(messages.Text([1], ["Hel"]))
    assert events(request) == [Text(0, "Hel", [])]
    weft.say(messages.Text([1], ["lo"], [End(1, "stop", 2, 5, None, 10, 11)]))
    assert events(request) == [Text(0, "lo", []), Finished(0, "stop", 2, 5, None, 10, 11)]
    assert request.is_over


def test_choices_are_told_apart(weft):
    request = weft.ask(n=2)
    accept(weft, request, first=5, choices=2)
    weft.say(messages.Text([6, 5], ["b", "a"], [End(6, "length", 1, 0)]))
    assert not request.is_over
    weft.say(messages.Text([5], [""], [End(5, "error", 1, 0, "no luck")]))
    assert events(request)[1:] == [
        Text(1, "b", []),
        Text(0, "a", []),
        Finished(1, "length", 1, 0, None, None, None),
        Finished(0, "error", 1, 0, "no luck", None, None),
    ]


def test_text_that_nobody_has_read_is_joined(weft):
    request = weft.ask()
    accept(weft, request)
    for piece in "abc":
        weft.say(messages.Text([1], [piece]))
    assert events(request)[1:] == [Text(0, "abc", [])]


def test_log_probabilities_stay_with_their_text(weft):
    request = weft.ask(logprobs=1)
    accept(weft, request)
    for piece in "ab":
        entry = TextLogprobs(0, piece, piece.encode(), -0.5, [(piece, piece.encode(), -0.5)])
        weft.say(messages.Text([1], [piece], [], [entry]))
    assert events(request)[1:] == [
        Text(0, piece, [TokenLogprob(piece, piece.encode(), -0.5, [(piece, piece.encode(), -0.5)])])
        for piece in "ab"
    ]


def test_a_refusal_says_why(weft):
    request = weft.ask(model="nope")
    refused = messages.Refused(request.label, "model_not_found", "no such model", "model", 2.5)
    weft.say(refused, "tokenizer")
    with pytest.raises(Refused, match="no such model") as caught:
        request.take()
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.retry_after_s == 2.5


def test_a_cancelled_request_ends_as_weft_says(weft):
    request = weft.ask()
    accept(weft, request)
    weft.session.cancel(request)
    weft.settle()
    assert weft.heard[-1] == messages.Cancel(request.label)
    weft.say(messages.Text([1], [""], [End(1, "cancelled", 0, 0)]))
    assert request.is_over
    heard = len(weft.heard)
    weft.session.cancel(request)
    weft.settle()
    assert len(weft.heard) == heard


def test_questions_get_their_own_answers(weft):
    models = weft.session.list_models(lambda: None)
    report = weft.session.inspect(lambda: None)
    weft.settle()
    listed, inspected = weft.heard
    counts = [0] * (len(METRIC_BUCKETS_S) + 1)
    metrics = messages.AdapterMetrics("d", ["a"], 1, 2, 3, 4, counts, 0.5, counts, 0.25, True)
    tenant = messages.TenantMetrics("ann", 1, 2, 3, 4, counts, 0.5, 11.0)
    load = messages.LoadMetrics("adapters", "host", counts, 0.5)
    sections = {"scheduler": {"rows": 1.0}}
    weft.say(messages.Report(inspected.label, sections, [metrics], [tenant], [load]))
    entry = messages.ModelEntry("m", "/m", None, None, None, 1, 2048)
    weft.say(messages.Models(listed.label, [entry], "resting", "in part"), "tokenizer")
    model = Model("m", "/m", None, None, None, 1, 2048)
    assert models.take() == ([model], "resting", "in part")
    told, [adapter], [found], [loaded] = report.take()
    assert told == sections
    assert loaded == {name: getattr(load, name) for name in load.__struct_fields__}
    assert adapter == {name: getattr(metrics, name) for name in metrics.__struct_fields__}
    assert found == {name: getattr(tenant, name) for name in tenant.__struct_fields__}


def test_more_requests_than_credit_wait_and_arrive_in_order(weft):
    window = next(edge for edge in TOPOLOGY.edges if edge.connects == CLIENT).forward_window
    prompts = [str(number) for number in range(5 * window)]
    for prompt in prompts:
        weft.session.submit(lambda: None, model=None, messages=None, prompt=prompt, sampling={})
    assert not weft.session.tokenizer.is_flushed
    weft.settle()
    assert weft.session.tokenizer.is_flushed
    assert [submit.prompt for submit in weft.heard] == prompts


def test_a_long_answer_is_acknowledged(weft):
    request = weft.ask()
    accept(weft, request)
    for _ in range(5000):
        weft.say(messages.Text([1], ["x"]))
    assert events(request)[1:] == [Text(0, "x" * 5000, [])]
    assert not weft.endpoints["detokenizer"].faults


def test_a_request_too_large_for_a_frame_is_the_callers_error(weft):
    with pytest.raises(ValueError, match="at most"):
        weft.ask(prompt="x" * (33 * 1024 * 1024))
    assert weft.ask().label


def test_goodbye_fails_everything_that_waits_and_everything_later(weft):
    request = weft.ask()
    accept(weft, request)
    question = weft.session.inspect(lambda: None)
    weft.settle()
    for endpoint in weft.endpoints.values():
        endpoint.close()
    weft.settle()
    assert events_until_failure(request) == [Accepted("id" * 16, 7, 1)]
    with pytest.raises(Disconnected, match="has ended"):
        question.take()
    with pytest.raises(Disconnected, match="has ended"):
        weft.ask().take()
    with pytest.raises(Disconnected, match="has ended"):
        weft.session.inspect(lambda: None).take()


def test_a_failure_that_everyone_hears_of_does_not_remember_them_all(weft):
    for endpoint in weft.endpoints.values():
        endpoint.close()
    weft.settle()
    lengths = set()
    for _ in range(5):
        for take in (weft.ask().take, weft.session.inspect(lambda: None).take):
            with pytest.raises(Disconnected) as caught:
                take()
            lengths.add(len(caught.traceback))
    assert lengths == {2}  # this frame and the one that raises


def test_what_was_accepted_goes_on_when_weft_takes_nothing_new(weft):
    request, question = weft.ask(), weft.session.list_models(lambda: None)
    accept(weft, request)
    weft.endpoints["tokenizer"].close()
    weft.settle()
    with pytest.raises(Disconnected, match="has ended"):
        question.take()
    with pytest.raises(Disconnected):
        weft.ask().take()
    weft.session.cancel(request)  # too late, and harmless
    weft.say(messages.Text([1], ["end"], [End(1, "stop", 1, 0)]))
    assert [type(event) for event in events(request)] == [Accepted, Text, Finished]


def events_until_failure(request):
    """What was heard before the connection was lost, which comes last."""
    found = []
    while True:
        try:
            found.append(request.take())
        except Disconnected:
            return found


def test_a_client_that_leaves_says_so(weft):
    weft.session.tokenizer.close()
    weft.session.detokenizer.close()
    weft.settle()
    assert weft.heard == [Lost("client"), Lost("client")]


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xc1", "no frame"),
        (b"\x93\x01\x02\x03", "no frame"),
        (b"\x96\x01\x01\x01\x00\x00\x05", "no frame"),
        (b"\x96\x02\x01\x01\x00\x00\x91\xa3Ack", "version 2"),
        (b"\x96\x01\x01\x01\x09\x00\x93\xa6Models\xa11\x90", "message 9 came after 0"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_left(weft, frame, why):
    weft.session.receive(weft.session.tokenizer, frame)
    with pytest.raises(Disconnected, match=why):
        weft.ask().take()


def test_messages_of_a_later_version_are_passed_over(weft):
    weft.session.receive(weft.session.tokenizer, b"\x96\x01\x01\x01\x01\x00\x92\xa3New\x05")
    assert weft.session.failure is None


def test_a_weft_that_has_been_restarted_is_addressed_by_its_epoch():
    weft = Weft(epoch=7)
    weft.ask()
    assert [message.prompt for message in weft.heard] == ["hello"]


def test_what_weft_cannot_read_is_refused_and_the_next_request_is_heard(weft):
    with pytest.raises(Refused, match=r"sampling\.temperature: Expected `float"):
        weft.ask(temperature="hot").take()
    weft.ask("hello")
    assert [message.prompt for message in weft.heard] == ["hello"]
