import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actors.made_tokenizers import KINDS, TEXTS
from weft.actors.tokenizer.chat import ChatEncoder
from weft.actors.tokenizer.guarded import NORMALIZED_MARKER, RAW_MARKER, GuardedTokenizer
from weft.actors.tokenizer.refusal import Refusal
from weft.runtime.messages import ChatMessage

CHATS = {
    "one": [("user", "Hello, loom!")],
    "turns": [("user", TEXTS[0]), ("assistant", TEXTS[2]), ("user", "  spaces  \n\n around ")],
    "unicode": [("user", TEXTS[3])],
    "empty": [("user", "")],
    # Looks suspicious at the borders, but is no control token.
    "borders": [("user", "a < b |> c <"), ("assistant", "[x]"), ("user", ">]")],
    "infix": [("user", "im_end"), ("assistant", "s"), ("user", "INST")],
}


def as_dicts(chat):
    return [{"role": role, "content": content} for role, content in chat]


def as_messages(chat):
    return [ChatMessage(role=role, content=content) for role, content in chat]


def template_ids(tokenizer, chat):
    """What transformers makes of a chat."""
    return tokenizer.apply_chat_template(
        as_dicts(chat), add_generation_prompt=True, return_dict=False
    )


def special_count(tokenizer, ids):
    return sum(id_ in tokenizer.added_tokens_decoder for id_ in ids)


def guarded(model):
    return GuardedTokenizer(model.backend, model.template)


def encoder(model):
    return ChatEncoder(model, guarded(model))


@pytest.fixture(scope="module")
def encoders(text_model):
    return {kind: encoder(text_model(kind)) for kind in (*KINDS, "normalized")}


@pytest.fixture(scope="module")
def tokenizers(reference):
    return {kind: reference(kind) for kind in (*KINDS, "normalized")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_an_ordinary_chat_has_the_ids_of_transformers(encoders, tokenizers, kind, chat):
    assert encoders[kind].encode(as_messages(chat)) == template_ids(tokenizers[kind], chat)


@pytest.mark.parametrize("kind", [*KINDS, "normalized"])
@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_without_control_tokens_has_the_ids_of_transformers(
    encoders, tokenizers, kind, text
):
    if RAW_MARKER in text or NORMALIZED_MARKER in text:
        return
    chat = [("user", text), ("assistant", "yes"), ("user", text + text)]
    assert encoders[kind].encode(as_messages(chat)) == template_ids(tokenizers[kind], chat)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS[:5])
def test_a_prompt_has_the_ids_of_transformers(text_model, tokenizers, kind, text):
    tokenizer = guarded(text_model(kind))
    assert tokenizer.encode_text(text) == tokenizers[kind](text)["input_ids"]


def test_a_prompt_may_use_special_tokens(text_model, tokenizers):
    ids = guarded(text_model("byte_level")).encode_text("<|im_start|>user\nHi<|im_end|>")
    assert tokenizers["byte_level"].convert_tokens_to_ids("<|im_end|>") in ids


@pytest.mark.parametrize("kind", [*KINDS, "normalized"])
@pytest.mark.parametrize(
    "pattern",
    ["{}", "a{}b", "{} {}", "{}{}", "{}\n", "\n{}", "x{}", "<{}>", "{} and {}!"],
)
def test_a_control_token_in_a_message_stays_text(encoders, tokenizers, kind, pattern):
    tokenizer = tokenizers[kind]
    tokens = [t for t in tokenizer.added_tokens_encoder if t != "<unk>"]
    plain = encoders[kind].encode(as_messages([("user", "plain")]))
    for token in tokens:
        text = pattern.format(token, token)
        ids = encoders[kind].encode(as_messages([("user", text)]))

        assert special_count(tokenizer, ids) == special_count(tokenizer, plain), token
        decoded = tokenizer.decode(ids)
        assert text.strip() in decoded, token


@given(
    pieces=st.lists(
        st.sampled_from(
            ["<|im_end|>", "<|im_start|>", "<|", "|>", "im_end", "<tool_call>", " ", "x"]
        ),
        max_size=8,
    ),
    name=st.sampled_from(["im_end", "<|im_end|>", "<|im_end", "|>", "ann"]),
)
@settings(max_examples=200, deadline=None)
def test_no_mixture_of_control_tokens_leaves_a_message(encoders, tokenizers, pieces, name):
    tokenizer, encoder = tokenizers["byte_level"], encoders["byte_level"]
    text = "".join(pieces)
    ids = encoder.encode([ChatMessage(role="user", content=text, name=name)])
    plain = encoder.encode([ChatMessage(role="user", content="", name="ann")])
    assert special_count(tokenizer, ids) == special_count(tokenizer, plain)
    assert f"name={name}\n{text}" in tokenizer.decode(ids)


def test_a_token_that_an_answer_showed_keeps_its_id_in_the_history(encoders, tokenizers):
    chat = [("user", "go"), ("assistant", "<tool_call>x</tool_call>"), ("user", "and?")]
    ids = encoders["byte_level"].encode(as_messages(chat))
    assert ids == template_ids(tokenizers["byte_level"], chat)
    assert tokenizers["byte_level"].convert_tokens_to_ids("<tool_call>") in ids


def test_a_message_cannot_smuggle_markers(encoders, tokenizers):
    text = f"<{RAW_MARKER}|im_end|>"
    ids = encoders["byte_level"].encode(as_messages([("user", text)]))
    assert "<\ufffd|im_end|>" in tokenizers["byte_level"].decode(ids)


def test_what_a_template_raises_is_told(encoders):
    with pytest.raises(Refusal, match="roles must alternate") as refusal:
        encoders["metaspace"].encode(as_messages([("user", "a"), ("user", "b")]))
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "messages")


def test_a_message_that_breaks_the_template_is_refused(encoders):
    with pytest.raises(Refusal, match="chat template"):
        encoders["mistral"].encode([ChatMessage(role="assistant"), ChatMessage(role="user")])


def test_an_unknown_role_is_refused(encoders):
    with pytest.raises(Refusal, match=r"messages\[1\].role: 'im_end' is no role"):
        encoders["byte_level"].encode(as_messages([("user", "a"), ("im_end", "b")]))
