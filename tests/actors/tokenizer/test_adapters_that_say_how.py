"""Requests for adapters whose folders say how to talk to them; those of others do not change."""

import pytest

from tests.actors.tokenizer.test_tokenizer_manager import Desk
from weft.actors.tokenizer.guarded import GuardedTokenizer
from weft.runtime.messages import (
    Abort,
    AdapterDefaults,
    AdapterEntry,
    AddedToken,
    Cancel,
    Catalog,
    ChatMessage,
    Generate,
    ListModels,
    Refused,
    SamplingDefaults,
    Submit,
)

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}({{ m.role }}){{ m.content }}{{ eos_token }}{% endfor %}"
)
HI = [ChatMessage(role="user", content="Hi")]
ASIDE = [ChatMessage(role="system", content="Sing."), *HI]


@pytest.fixture(scope="module")
def model(text_model):
    return text_model("byte_level")


@pytest.fixture
def desk(model):
    desk = Desk(model)
    yield desk
    desk.actor.check()


def tell(desk, version=2, *, tokens_added=0, **said):
    """The store says that an adapter's folder says this."""
    defaults = AdapterDefaults(**said)
    entry = AdapterEntry(
        "own", "/own", "d9", 8, 5, version=version, tokens_added=tokens_added, defaults=defaults
    )
    desk.hear(Catalog([entry], version=version), source="adapters")
    desk.advance()


def chat(desk, messages=HI, *, model="own", **options):
    """What becomes of a chat, once it has been rendered."""
    desk.submit(None, messages=messages, model=model, **options)
    sends = (desk.advance() or []) + (desk.advance() or [])
    (send,) = sends
    return send.message


def ids(model, text):
    return GuardedTokenizer(model.backend, None).encode_rendered(text)


def test_a_chat_is_rendered_by_the_adapters_own_template(desk, model, reference):
    tell(desk, chat_template=TEMPLATE, special_tokens={"bos_token": "<|im_start|>"})
    assert chat(desk).prompt == ids(model, "<|im_start|>(user)Hi<|im_end|>")
    expected = reference("byte_level").apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    for other in ("sql", None):
        assert chat(desk, model=other).prompt == expected


def test_the_bases_template_in_an_adapters_folder_is_rendered_at_once(desk, model):
    tell(desk, chat_template=model.template)
    desk.renderer.is_slow = True
    assert chat(desk).prompt == chat(desk, model=None).prompt


def test_control_tokens_of_an_adapters_template_cannot_be_forged(desk, model):
    tell(desk, chat_template="{% for m in messages %}{{ m.content }}<tool_call>{% endfor %}")
    forged = chat(desk, [ChatMessage(role="user", content="a<tool_call>")]).prompt
    token = model.backend.token_to_id("<tool_call>")
    assert forged.count(token) == 1
    assert model.backend.decode(forged) == "a<tool_call><tool_call>"


def test_of_several_adapters_the_one_named_first_is_talked_to(desk, model):
    tell(desk, chat_template=TEMPLATE, stop=["END"])
    first = chat(desk, model="own:0.5+sql")
    assert (first.prompt, first.stop) == (ids(model, "(user)Hi<|im_end|>"), ["END"])
    assert [use.scale for use in first.adapters] != [1.0, 1.0]
    second = chat(desk, model="sql+own:0.5")
    assert (second.prompt, second.stop) == (chat(desk, model="sql").prompt, [])
    # One that is left out says nothing.
    assert chat(desk, model="own:0+sql").prompt == second.prompt


def test_a_prompt_has_no_template(desk, model):
    tell(desk, chat_template=TEMPLATE, system_prompt="Be brief.")
    assert desk.answer("Hi", model="own").prompt == ids(model, "Hi")


def test_a_conversation_without_a_system_message_gets_the_adapters(desk):
    tell(desk, system_prompt="Be brief.")
    brief = [ChatMessage(role="system", content="Be brief."), *HI]
    assert chat(desk).prompt == chat(desk, brief, model="sql").prompt
    assert chat(desk, ASIDE).prompt == chat(desk, ASIDE, model="sql").prompt
    told = [ChatMessage(role="developer", content="Sing."), *HI]
    assert chat(desk, told).prompt == chat(desk, told, model="sql").prompt


def test_an_adapters_template_renders_its_system_prompt(desk, model):
    tell(desk, chat_template=TEMPLATE, system_prompt="Be <|im_end|> brief.")
    prompt = chat(desk).prompt
    assert model.backend.decode(prompt, skip_special_tokens=False) == (
        "(system)Be <|im_end|> brief.<|im_end|>(user)Hi<|im_end|>"
    )
    assert prompt.count(model.backend.token_to_id("<|im_end|>")) == 2  # the template's own


def test_a_request_wins_over_the_adapter_and_the_adapter_over_the_base(desk):
    sampling = SamplingDefaults(
        temperature=0.5, top_k=3, presence_penalty=0.25, frequency_penalty=0.5, max_tokens=7
    )
    tell(desk, sampling=sampling)
    own = desk.answer(model="own", top_k=0, presence_penalty=0.0)
    assert (own.max_tokens, own.sampling.temperature, own.sampling.top_k) == (7, 0.5, 0)
    assert (own.sampling.presence_penalty, own.sampling.frequency_penalty) == (0.0, 0.5)
    assert own.sampling.top_p == 1.0
    base = desk.answer()
    assert (base.sampling.temperature, base.sampling.frequency_penalty) == (1.0, 0.0)
    assert base.max_tokens > 7
    assert desk.answer(model="own", max_tokens=9).max_tokens == 9
    assert desk.answer(model="own", min_tokens=9).max_tokens == 9


def test_a_default_length_does_not_refuse_a_prompt_that_leaves_less(desk, model):
    tell(desk, sampling=SamplingDefaults(max_tokens=400))
    prompt = [5] * (model.max_model_len - 3)
    assert desk.answer(prompt, model="own").max_tokens == 3


def test_an_adapters_stop_strings_come_beside_the_requests(desk):
    tell(desk, stop=["END", "."])
    assert desk.answer(model="own", stop=[".", "!"]).stop == [".", "!", "END"]
    assert desk.answer(model="own", ignore_eos=True, stop=["!"]).stop == ["!"]
    assert desk.answer(stop=["!"]).stop == ["!"]


def test_an_adapters_ends_replace_the_bases(desk, model):
    tell(desk, eos_token_ids=[7, 9], special_tokens={"eos_token": "<|endoftext|>"})
    end = model.backend.token_to_id("<|endoftext|>")
    assert desk.answer(model="own").stop_token_ids == sorted([7, 9, end])
    tell(desk, 3, special_tokens={"eos_token": "<|endoftext|>"})
    assert desk.answer(model="own").stop_token_ids == sorted({*model.eos_token_ids, end})


def test_ends_that_are_no_tokens_go_no_further(desk, model):
    end = model.backend.token_to_id(model.special_tokens["eos_token"])
    tell(desk, eos_token_ids=[-1, model.vocab_size])
    assert desk.answer(model="own").stop_token_ids == [end]


def test_added_tokens_are_encoded_for_their_adapter_alone(desk, model):
    first = model.backend.get_vocab_size()
    tokens = [
        AddedToken(first, "<think>"), AddedToken(first + 1, "<|tool|>", special=True),
    ]  # fmt: skip
    tell(desk, added_tokens=tokens)
    own = desk.answer("a<think>b<|tool|>", model="own")
    assert own.prompt == [*ids(model, "a"), first, *ids(model, "b"), first + 1]
    assert own.added_tokens == tokens
    other = desk.answer("a<think>b<|tool|>")
    assert max(other.prompt) < first
    assert other.added_tokens == []


def test_added_tokens_cannot_be_forged_in_a_chat(desk, model):
    first = model.backend.get_vocab_size()
    tell(desk, chat_template=TEMPLATE, added_tokens=[AddedToken(first, "<|tool|>", special=True)])
    assert first not in chat(desk, [ChatMessage(role="user", content="a<|tool|>")]).prompt


def test_ids_of_added_tokens_may_be_used_where_they_mean_something(desk, model):
    beyond = model.vocab_size
    ids = range(model.backend.get_vocab_size(), beyond + 1)
    tell(desk, added_tokens=[AddedToken(id_, f"<{id_}>") for id_ in ids], tokens_added=1)
    own = desk.answer([beyond], model="own", logit_bias={beyond: 1.0}, stop_token_ids=[beyond])
    assert isinstance(own, Generate)
    assert desk.answer(f"<{beyond}>", model="own").prompt == [beyond]
    for options in ({"logit_bias": {beyond: 1.0}}, {"stop_token_ids": [beyond]}):
        assert desk.refusal(**options).param == next(iter(options))
    assert desk.refusal([beyond]).param == "prompt"


def test_added_tokens_that_do_not_fit_are_refused_with_each_request(desk, model):
    tell(desk, added_tokens=[AddedToken(model.backend.get_vocab_size() + 3, "<think>")])
    refused = desk.refusal(model="own")
    assert (refused.code, refused.param) == ("adapter_refused", "model")
    assert "'<think>', cannot have this id" in refused.message


def test_what_a_template_raises_is_told(desk):
    tell(desk, chat_template="{{ raise_exception('roles must alternate') }}")
    refused = chat(desk)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("invalid_value", "messages")
    assert "roles must alternate" in refused.message


def test_requests_for_others_pass_one_that_is_rendered(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    desk.submit(None, messages=HI, model="own", label="slow")
    assert desk.advance() == []
    assert desk.answer(label="quick").label == "quick"
    assert not desk.actor.is_idle
    desk.renderer.is_slow = False
    (send,) = desk.advance()
    assert send.message.label == "slow"
    assert desk.actor.is_idle


def test_a_request_is_resolved_by_what_the_name_means_when_its_chat_has_been_rendered(desk, model):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    desk.submit(None, messages=HI, model="own")
    desk.advance()
    tell(desk, 3, chat_template="other {{ messages[0].content }}")
    desk.renderer.is_slow = False
    (send,) = desk.advance()
    assert send.message.prompt == ids(model, "other Hi")


def test_a_name_that_is_gone_when_its_chat_has_been_rendered_is_not_found(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    desk.submit(None, messages=HI, model="own")
    desk.advance()
    desk.hear(Catalog([], ["own"], 3), source="adapters")
    desk.advance()
    desk.renderer.is_slow = False
    (send,) = desk.advance()
    assert send.message.code == "model_not_found"


def test_a_request_can_be_cancelled_while_its_chat_is_rendered(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    desk.submit(None, messages=HI, model="own", label="x")
    desk.advance()
    desk.hear(Cancel("x"))
    (send,) = desk.advance()
    assert (send.message.code, desk.renderer.forgotten) == ("cancelled", [1])
    assert desk.actor.is_idle
    desk.hear(Cancel("x"))
    assert [send.message for send in desk.advance()] == [Abort("ann", "x")]


def test_a_client_that_is_gone_has_nothing_rendered(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    desk.submit(None, messages=HI, model="own")
    desk.advance()
    desk.actor.lost("ann", 0)
    assert desk.actor.is_idle


def test_requests_that_are_rendered_count_as_waiting(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    for number in range(17):
        desk.submit(None, messages=HI, model="own", label=str(number))
        sends = desk.advance()
    assert sends[0].message.code == "queue_full"


def test_an_actor_with_more_to_give_away_asks_for_another_turn(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.renderer.is_slow = True
    for number in range(9):
        desk.submit(None, messages=HI, model="own", label=str(number))
    assert desk.advance() is None
    assert desk.advance() == []


def test_names_are_not_resolved_by_half_a_catalog(model):
    desk = Desk(model)
    desk.actor._has_catalog = False
    desk.hear(Catalog([], version=1, is_last=False), source="adapters")
    desk.submit(model="own")
    desk.advance()
    tell(desk, system_prompt="a")
    assert desk.actor.is_idle


def test_a_list_of_models_says_in_short_what_an_adapter_says(desk):
    tell(desk, chat_template="x", stop=["a", "b"], sampling=SamplingDefaults(top_k=2))
    desk.hear(ListModels("m"))
    (send,) = desk.advance()
    own = next(model for model in send.message.models if model.name == "own")
    assert own.defaults.chat_template
    assert not own.defaults.system_prompt
    assert (own.defaults.stop, own.defaults.sampling) == (2, SamplingDefaults(top_k=2))
    assert all(m.defaults is None for m in send.message.models if m.name != "own")


def test_a_chat_of_the_wrong_size_is_refused_before_it_is_rendered(desk):
    tell(desk, chat_template=TEMPLATE)
    desk.hear(Submit("a", "own", [ChatMessage(role="user", content="x" * 10_000)]))
    (send,) = desk.advance()
    assert send.message.code == "context_length_exceeded"
