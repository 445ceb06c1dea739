import dataclasses

import msgspec
import pytest

from tests.sim.renderer import DirectRenderer
from weft.actors.tokenizer import replies
from weft.actors.tokenizer.actor import LABEL_CHARACTERS_MAX, SUBMITS_PER_TURN_MAX, TokenizerManager
from weft.actors.tokenizer.prompt import CHARACTERS_PER_TOKEN_MAX
from weft.runtime.actor import Send, Turn
from weft.runtime.config import Config, TenantLimits
from weft.runtime.messages import (
    Abort,
    AdapterEntry,
    AdapterUse,
    Cancel,
    Catalog,
    CatalogSeen,
    ChatMessage,
    Generate,
    Inspect,
    Inspection,
    ListModels,
    Models,
    Refused,
    Reject,
    Sampling,
    Submit,
)

NONCE = 0xABC
CATALOG = Catalog(
    [
        AdapterEntry("sql", "/adapters/sql", "d1", 8, 5),
        AdapterEntry("bad", "/adapters/bad", "", 0, 5, "use_qalora: True is not supported"),
    ]
)


def manager(model, renderer, *, nonce=NONCE, **options):
    config = Config(model="/models/base", **options)
    return TokenizerManager(config, model, renderer, nonce=nonce, started_s=5)


class Desk:
    """A tokenizer manager whose catalog has arrived, with room on every link."""

    def __init__(self, model, *, queue=16, **options):
        self.renderer = DirectRenderer()
        self.actor = manager(model, self.renderer, max_queued_requests=queue, **options)
        self.room = {"scheduler": 100, "adapters": 10, "ann": 100, "bob": 100}
        self.hear(CATALOG, source="adapters")
        assert self.advance() == [Send("scheduler", CatalogSeen(1))]

    def hear(self, message, *, source="ann"):
        assert self.actor.receive(source, message, 0) == []

    def advance(self):
        return self.actor.advance(Turn(0, lambda peer: self.room.get(peer, 0)))

    def submit(
        self, prompt="Hello", *, label="a", model=None, messages=None, user=None, tenant=None,
        priority=0, **sampling,
    ):  # fmt: skip
        asker = user, tenant, priority
        submit = Submit(label, model, messages, prompt, Sampling(**sampling), *asker)
        self.hear(submit, source="ann")

    def answer(self, *args, **kwargs):
        self.submit(*args, **kwargs)
        (send,) = self.advance()
        return send.message

    def refusal(self, *args, **kwargs):
        answer = self.answer(*args, **kwargs)
        assert isinstance(answer, Refused), answer
        return answer


@pytest.fixture(scope="module")
def model(text_model):
    return text_model("byte_level")


@pytest.fixture
def desk(model):
    desk = Desk(model)
    yield desk
    desk.actor.check()


def test_a_prompt_becomes_a_complete_request(desk, model):
    generate = desk.answer("Hello", max_tokens=5)
    assert isinstance(generate, Generate)
    assert generate.prompt == model.backend.encode("Hello").ids
    assert (generate.client, generate.label, generate.model) == ("ann", "a", "base")
    assert (generate.adapters, generate.max_tokens, generate.choices) == ([], 5, 1)
    assert generate.stop_token_ids == list(model.eos_token_ids)
    assert generate.request_id == f"{NONCE:016x}{0:016x}"
    assert generate.sampling.temperature == 1.0
    assert desk.actor.is_idle


def test_messages_are_rendered_by_the_models_template(desk, reference):
    generate = desk.answer(None, messages=[ChatMessage(role="user", content="Hi")])
    expected = reference("byte_level").apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert generate.prompt == expected


def test_an_adapters_name_becomes_its_digest(desk):
    generate = desk.answer(model="sql")
    assert (generate.adapters, generate.model) == ([AdapterUse("d1", 1.0, "sql")], "sql")
    assert desk.answer(model="base").adapters == []


@pytest.mark.parametrize(
    ("prompt", "start"),
    [([7, 8, 1], 0), ([1, 7, 8], 1), ([7, 8, 7, 8, 9, 7], 2), ([7, 7, 8, 8], 1), ([7, 8], 0)],
)
def test_an_activated_adapter_begins_where_the_prompt_has_its_invocation_last(desk, prompt, start):
    entry = AdapterEntry("act", "/adapters/act", "d9", 8, 5, invocation_tokens=[7, 8])
    desk.hear(Catalog([entry], [], 2), source="adapters")
    desk.advance()
    generate = desk.answer(prompt, model="act")
    assert (generate.lora_start, generate.prompt) == (start, prompt)
    assert desk.answer(prompt, model="sql").lora_start == 0


@pytest.mark.parametrize("prompt", [[8, 7], [7, 1, 8], [7], "Hello"])
def test_an_activated_adapter_that_is_not_invoked_is_refused_with_the_words_to_do_it(
    desk, model, prompt
):
    entry = AdapterEntry("act", "/adapters/act", "d9", 8, 5, invocation_tokens=[7, 8])
    desk.hear(Catalog([entry], [], 2), source="adapters")
    desk.advance()
    refused = desk.refusal(prompt, model="act")
    assert (refused.code, refused.param) == ("invocation_missing", "prompt")
    assert repr(model.backend.decode([7, 8])) in refused.message
    messages = [ChatMessage(role="user", content="Hi")]
    assert desk.refusal(None, messages=messages, model="act").param == "messages"


def test_an_unknown_model_is_not_found(desk):
    refused = desk.refusal(model="sqk")
    assert (refused.code, refused.param) == ("model_not_found", "model")
    assert "did you mean 'sql'" in refused.message


def test_tokens_that_an_adapter_has_added_are_its_own(desk, model):
    first = model.vocab_size
    desk.hear(Catalog([AdapterEntry("grown", "/g", "d2", 8, 5, tokens_added=2)]), source="adapters")
    assert desk.advance() == [Send("scheduler", CatalogSeen(1))]
    own = {"stop_token_ids": [first], "logit_bias": {first + 1: 2.0}}
    assert desk.answer([first, first + 1], model="grown", **own).prompt == [first, first + 1]
    for asked in ({"prompt": [first]}, {"stop_token_ids": [first]}, {"logit_bias": {first: 1.0}}):
        param = next(iter(asked))
        assert desk.refusal(**asked).param == desk.refusal(model="sql", **asked).param == param
    refused = desk.refusal([first + 2], model="grown")
    assert f"{first + 2} is no token of the model; ids are 0 .. {first + 1}" in refused.message


def test_a_refused_adapter_says_why(desk):
    refused = desk.refusal(model="bad")
    assert refused.code == "adapter_refused"
    assert "use_qalora" in refused.message


def test_without_max_tokens_the_context_is_filled(desk, model):
    generate = desk.answer("Hello")
    assert generate.max_tokens == model.max_model_len - len(generate.prompt)


def test_a_request_beyond_the_context_is_refused_with_the_numbers(desk, model):
    refused = desk.refusal([5] * 500, max_tokens=13)
    assert refused.code == "context_length_exceeded"
    for number in ("500", "13", "513", str(model.max_model_len)):
        assert number in refused.message
    assert isinstance(desk.answer([5] * 500, max_tokens=12), Generate)


@pytest.mark.parametrize(
    "submit",
    [
        {"prompt": "x" * (512 * CHARACTERS_PER_TOKEN_MAX + 1)},
        {"prompt": [5] * 512},
        {"prompt": None, "messages": [ChatMessage(role="user")] * 512},
        {"prompt": None, "messages": [ChatMessage(role="user", content="x" * 10_000)]},
    ],
    ids=["text", "tokens", "messages", "content"],
)
def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(desk, submit):
    desk.room["scheduler"] = 0
    assert desk.refusal(**submit).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("submit", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"messages": [ChatMessage(role="user")]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1 << 40]}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"model": "m" * (LABEL_CHARACTERS_MAX + 1)}, "model"),
        ({"label": "m" * (LABEL_CHARACTERS_MAX + 1)}, "label"),
        ({"user": "m" * (LABEL_CHARACTERS_MAX + 1)}, "user"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": float("inf")}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),  # none, in float32
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a" * 1025]}, "stop[0]"),
        ({"stop_token_ids": [100_000]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logit_bias": {100_000: 1.0}}, "logit_bias"),
        ({"logit_bias": {5: 101.0}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_name_and_nothing_else_suffers(desk, submit, param):
    desk.submit("Hello", label="before")
    desk.submit(**submit)
    desk.submit("Hello", label="after")
    *generated, refusal = [send.message for send in desk.advance()]
    assert (refusal.code, refusal.param) == ("invalid_value", param)
    assert [generate.label for generate in generated] == ["before", "after"]


def test_defaults_come_from_the_generation_config(model):
    defaults = msgspec.structs.replace(
        model.defaults, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1
    )
    desk = Desk(dataclasses.replace(model, defaults=defaults))
    assert desk.answer().sampling.temperature == 0.7
    filled = desk.answer(top_p=0.5, top_k=-1).sampling
    assert (filled.top_p, filled.top_k, filled.repetition_penalty) == (0.5, 0, 1.1)


def test_stop_tokens_are_banned_before_min_tokens(desk, model):
    generate = desk.answer(min_tokens=3, stop_token_ids=[7])
    stops = sorted({7, *model.eos_token_ids})
    assert generate.stop_token_ids == generate.sampling.min_tokens_banned == stops
    ignoring = desk.answer(ignore_eos=True, stop_token_ids=[7])
    assert (ignoring.stop_token_ids, ignoring.sampling.min_tokens_banned) == ([7], [])


def test_seeds_are_the_clients_or_drawn_one_for_each_request(desk):
    assert desk.answer(seed=11).sampling.seed == 11
    assert desk.answer(seed=-1).sampling.seed == 2**63 - 1
    drawn = [desk.answer().sampling.seed for _ in range(8)]
    assert len(set(drawn)) == 8
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_two_lives_draw_different_seeds_and_ids(model):
    one, two = Desk(model), Desk(model)
    two.actor = manager(model, DirectRenderer(), nonce=1)
    two.hear(CATALOG)
    two.advance()
    a, b = one.answer(), two.answer()
    assert a.request_id != b.request_id
    assert a.sampling.seed != b.sampling.seed


def test_requests_wait_for_the_catalog(model):
    desk = Desk(model)
    desk.actor = manager(model, DirectRenderer(), nonce=1)
    desk.submit(model="sql")
    assert desk.advance() == []
    desk.hear(CATALOG, source="adapters")
    seen, generate = desk.advance()
    assert seen.message == CatalogSeen(1)
    assert [use.digest for use in generate.message.adapters] == ["d1"]


def test_requests_wait_for_room_and_are_refused_beyond_the_queue(model):
    desk = Desk(model, queue=2)
    desk.room["scheduler"] = 0
    for label in "abc":
        desk.submit(label=label)
    (send,) = desk.advance()
    assert (send.message.label, send.message.code) == ("c", "queue_full")
    assert send.message.retry_after_s > 0
    desk.room["scheduler"] = 1
    assert [send.message.label for send in desk.advance()] == ["a"]
    assert [send.message.label for send in desk.advance()] == ["b"]


def test_a_turn_encodes_a_bounded_number_of_requests(desk):
    for index in range(SUBMITS_PER_TURN_MAX + 1):
        desk.submit(label=str(index))
    assert len(desk.advance()) == SUBMITS_PER_TURN_MAX
    assert len(desk.advance()) == 1


def test_a_draining_manager_finishes_what_it_has_and_refuses_the_rest(desk):
    desk.submit(label="before")
    desk.actor.drain()
    assert not desk.actor.is_idle
    desk.submit(label="after")
    generate, refused = [send.message for send in desk.advance()]
    assert (generate.label, refused.label, refused.code) == ("before", "after", "draining")
    assert refused.retry_after_s > 0
    assert desk.actor.is_idle


def test_a_cancelled_request_that_waits_is_refused_and_one_that_left_is_aborted(desk):
    desk.submit(label="gone")
    desk.advance()
    desk.submit(label="waits")
    desk.hear(Cancel("waits"))
    desk.hear(Cancel("gone"))
    desk.hear(Cancel("gone"))
    abort, refused = desk.advance()
    assert abort == Send("scheduler", Abort("ann", "gone"))
    assert (refused.message.label, refused.message.code) == ("waits", "cancelled")


def test_one_client_cannot_cancel_for_another(desk):
    desk.submit(label="a")
    desk.hear(Cancel("a"), source="bob")
    abort, generate = desk.advance()
    assert abort.message == Abort("bob", "a")
    assert generate.message.label == "a"


def test_models_are_listed_without_the_refused(desk):
    desk.hear(ListModels("l"))
    (send,) = desk.advance()
    assert isinstance(send.message, Models)
    base, sql = send.message.models
    assert (base.name, base.parent, base.max_model_len) == ("base", None, 512)
    assert (sql.name, sql.parent, sql.digest, sql.rank) == ("sql", "base", "d1", 8)


def test_a_schedulers_rejection_reaches_the_client(desk):
    refused = Refused("a", "queue_full", "full", None, 2.0)
    desk.hear(Reject("bob", refused, "c0" * 16), source="scheduler")
    assert desk.advance() == [Send("bob", refused)]


def test_an_inspection_starts_with_the_tokenizers_section(desk):
    desk.answer()
    desk.hear(Inspect("look"))
    (send,) = desk.advance()
    assert send.to == "adapters"
    assert isinstance(send.message, Inspection)
    assert send.message.sections["tokenizer"]["generated_total"] == 1


def test_a_lost_clients_requests_are_forgotten(desk):
    desk.submit(label="a")
    desk.hear(Submit("b", prompt="Hello"), source="bob")
    desk.actor.lost("ann", 0)
    assert [send.message.client for send in desk.advance()] == ["bob"]


def test_a_client_that_reads_nothing_costs_a_bounded_queue(desk, monkeypatch):
    monkeypatch.setattr(replies, "UNREAD_MAX", 3)
    desk.room["ann"] = 0
    for _ in range(5):
        desk.hear(ListModels("l"))
    desk.hear(ListModels("l"), source="bob")
    assert [send.to for send in desk.advance()] == ["bob"]
    desk.room["ann"] = 100
    assert len(desk.advance()) == 3


def test_a_model_without_a_template_takes_prompts_only(model):
    desk = Desk(dataclasses.replace(model, template=None))
    refused = desk.refusal(None, messages=[ChatMessage(role="user", content="Hi")])
    assert "no chat template" in refused.message
    assert isinstance(desk.answer("Hi"), Generate)


@pytest.mark.parametrize(
    ("said", "tenant"),
    [
        ({"tenant": "acme", "user": "eve", "model": "sql"}, "acme"),
        ({"user": "eve", "model": "sql"}, "eve"),
        ({"model": "sql"}, "sql"),
        ({"model": "base"}, "base"),
        ({}, "base"),
    ],
)
def test_a_tenant_is_who_is_named_else_the_user_else_the_model(desk, said, tenant):
    assert desk.answer(**said).tenant == tenant


def test_a_priority_is_passed_on_within_its_range(desk):
    assert desk.answer(priority=-100).priority == -100
    refused = desk.refusal(priority=101)
    assert (refused.code, refused.param) == ("invalid_value", "priority")
    assert "101 is not in -100 .. 100" in refused.message


@pytest.mark.parametrize(
    ("limits", "tenant", "is_refused"),
    [
        ({"acme": TenantLimits(max_lora_rank=7)}, "acme", True),
        ({"acme": TenantLimits(max_lora_rank=8)}, "acme", False),
        ({"acme": TenantLimits(max_lora_rank=7)}, "eve", False),
        ({"*": TenantLimits(max_lora_rank=7)}, "eve", True),
        ({"*": TenantLimits(max_lora_rank=7), "acme": TenantLimits()}, "acme", False),
    ],
)
def test_an_adapter_of_a_higher_rank_than_the_tenant_may_use_is_refused(
    model, limits, tenant, is_refused
):
    desk = Desk(model, tenants=limits)
    answer = desk.answer(model="sql", tenant=tenant)
    assert isinstance(answer, Refused) == is_refused
    if is_refused:
        assert (answer.code, answer.param) == ("lora_rank_exceeded", "model")
        assert "rank 8, and yours may have 7" in answer.message
    assert desk.answer(label="b", tenant=tenant).adapters == []


def test_a_tenants_name_of_any_length_is_not_taken(desk):
    assert desk.refusal(tenant="x" * 1025).param == "tenant"
