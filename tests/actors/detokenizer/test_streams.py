import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AddedToken as HfToken
from transformers import AutoTokenizer

from tests.actors.made_tokenizers import TEXTS
from weft.actors.detokenizer.vocabularies import Vocabularies
from weft.actors.detokenizer.vocabulary import BYTE_RUN_MAX, REPLACEMENT, Vocabulary
from weft.runtime.config import ConfigError
from weft.runtime.messages import AddedToken

STREAMED = ("byte_level", "metaspace", "legacy")


@pytest.fixture(scope="module")
def backends(reference):
    return {kind: reference(kind) for kind in STREAMED}


@pytest.fixture(scope="module")
def vocabularies(backends):
    return {kind: Vocabulary(backend.backend_tokenizer) for kind, backend in backends.items()}


def streamed(vocabulary, ids, *, skip=True):
    stream = vocabulary.stream(skip_special_tokens=skip)
    parts = [stream.feed(id_) for id_ in ids]
    return "".join([*parts, stream.finish()])


@pytest.mark.parametrize("kind", STREAMED)
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_stream_of_any_ids_equals_the_full_decode(backends, vocabularies, kind, data):
    size = len(backends[kind])
    # Bytes and special tokens are among the first or the last, and meet each other often.
    tokens = st.one_of(
        st.integers(0, size + 9), st.integers(3, 258), st.integers(max(0, size - 6), size - 1)
    )
    ids = data.draw(st.lists(tokens, max_size=BYTE_RUN_MAX - 1))
    skip = data.draw(st.booleans())

    expected = backends[kind].decode(ids, skip_special_tokens=skip)
    assert streamed(vocabularies[kind], ids, skip=skip) == expected


@pytest.fixture(scope="module")
def extended(model_folder, vocabularies):
    """Tokenizers with an adapter's tokens, and the vocabularies that know of them."""
    found = {}
    for kind in STREAMED:
        tokenizer = AutoTokenizer.from_pretrained(model_folder(kind))
        first = len(tokenizer)
        tokenizer.add_tokens([HfToken("<think>", normalized=False), HfToken(" wide ▁é ")])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
        end = tokenizer.convert_tokens_to_ids("a")
        tokenizer.add_special_tokens({"sep_token": "a"})  # of the ordinary vocabulary
        own = [
            AddedToken(first, "<think>"),
            AddedToken(first + 1, " wide ▁é ", normalized=True),
            AddedToken(first + 2, "<|tool|>", special=True),
            AddedToken(end, "a", special=True),
        ]
        found[kind] = tokenizer, Vocabularies(vocabularies[kind]).of(own)
    return found


@pytest.mark.parametrize("kind", STREAMED)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_stream_with_added_tokens_equals_the_full_decode(extended, kind, data):
    tokenizer, vocabulary = extended[kind]
    size = len(tokenizer)
    special = tokenizer.convert_tokens_to_ids("a")
    tokens = st.one_of(st.integers(0, size + 3), st.integers(size - 5, size), st.just(special))
    ids = data.draw(st.lists(tokens, max_size=12))
    skip = data.draw(st.booleans())
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert streamed(vocabulary, ids, skip=skip) == expected


def test_added_tokens_are_known_to_their_adapter_alone(vocabularies, extended):
    tokenizer, vocabulary = extended["byte_level"]
    first = len(tokenizer) - 3
    assert vocabulary.bytes_of(first) == b"<think>"
    assert vocabularies["byte_level"].bytes_of(first) == b""
    token = tokenizer.convert_tokens_to_ids("a")
    assert streamed(vocabularies["byte_level"], [token]) == "a"
    assert streamed(vocabulary, [token]) == ""


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("text", [*TEXTS[:5], " leading", "  two", "\n", "👨‍👩‍👧‍👦", "é́"])
def test_a_stream_of_text_equals_the_full_decode(backends, vocabularies, kind, text):
    ids = backends[kind](text, add_special_tokens=False)["input_ids"]
    assert streamed(vocabularies[kind], ids) == backends[kind].decode(ids)


@pytest.mark.parametrize("kind", STREAMED)
@given(text=st.text(alphabet="aé你🙂 \n", max_size=20))
@example(text="🙂🙂")
@settings(max_examples=100, deadline=None)
def test_no_character_is_shown_in_part(backends, vocabularies, kind, text):
    stream = vocabularies[kind].stream(skip_special_tokens=True)
    ids = backends[kind](text, add_special_tokens=False)["input_ids"]
    shown = [stream.feed(id_) for id_ in ids]
    assert REPLACEMENT not in "".join(shown)


def byte_ids(backend, raw):
    return [backend.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in raw]


def test_a_long_run_of_byte_tokens_flows(backends, vocabularies):
    ids = byte_ids(backends["metaspace"], "ဗမာစာ".encode() * 20)
    stream = vocabularies["metaspace"].stream(skip_special_tokens=True)
    shown = "".join(stream.feed(id_) for id_ in ids)
    assert len(shown) > len(ids) / 3 - BYTE_RUN_MAX
    assert shown + stream.finish() == backends["metaspace"].decode(ids)


def test_a_run_with_an_invalid_byte_is_a_replacement_for_each(backends, vocabularies):
    ids = byte_ids(backends["metaspace"], "你".encode() + b"\xff\xe4")
    assert streamed(vocabularies["metaspace"], ids) == REPLACEMENT * 5


def test_bytes_of_a_token_make_up_the_text(backends, vocabularies):
    for kind in STREAMED:
        ids = backends[kind](TEXTS[3], add_special_tokens=False)["input_ids"]
        raw = b"".join(vocabularies[kind].bytes_of(id_) for id_ in ids)
        assert raw.decode().strip() == backends[kind].decode(ids).strip()


def test_ids_beyond_the_vocabulary_have_no_text(backends, vocabularies):
    for kind in STREAMED:
        assert vocabularies[kind].bytes_of(len(backends[kind]) + 5) == b""


@pytest.mark.parametrize(
    ("scheme", "expected"), [("always", "a b"), ("first", "a b"), ("never", " a b")]
)
def test_a_metaspace_decoder_drops_the_first_space_as_transformers_does(scheme, expected):
    tokenizer = Tokenizer(models.BPE({"▁a": 0, "▁b": 1}, []))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    assert tokenizer.decode([0, 1]) == expected
    assert streamed(Vocabulary(tokenizer), [0, 1]) == expected


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)]),
    ],
    ids=["word_piece", "replace_after_fuse", "strip_right"],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(decoder):
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoder
    with pytest.raises(ConfigError, match=r"decoder in tokenizer\.json"):
        Vocabulary(tokenizer)


def test_a_tokenizer_without_a_decoder_is_refused():
    with pytest.raises(ConfigError, match="no decoder"):
        Vocabulary(Tokenizer(models.BPE({"a": 0}, [])))
