"""What an adapter's folder says about how to talk to it, and what of it is refused, by file."""

import json

import msgspec
import pytest

from tests.actors.made_tokenizers import CHATML
from tests.sim.files import MemoryFiles
from weft.actors.adapters import defaults
from weft.actors.adapters.base_text import BaseText
from weft.actors.adapters.errors import BadAdapter
from weft.runtime.messages import AdapterDefaults, SamplingDefaults

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def base(model_folder):
    return BaseText(str(model_folder("byte_level")))


def said(base, **files):
    """What a folder of these files says; a key's first underscore is the dot of its name."""
    folder = {
        name.replace("_DOT_", "."): content if isinstance(content, bytes) else encoded(content)
        for name, content in files.items()
    }
    return defaults.read(MemoryFiles({"/a": folder}), "/a", base)


def encoded(content):
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def test_a_folder_of_weights_alone_says_nothing(base):
    assert said(base, adapter_config_DOT_json={}) is None


def test_a_template_is_taken_from_its_own_file_first(base):
    config = {"chat_template": "old"}
    found = said(base, chat_template_DOT_jinja=TEMPLATE, tokenizer_config_DOT_json=config)
    assert found.chat_template == TEMPLATE
    assert said(base, tokenizer_config_DOT_json=config).chat_template == "old"


def test_of_several_templates_the_default_one_is_taken(base):
    templates = [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE},
    ]  # fmt: skip
    found = said(base, tokenizer_config_DOT_json={"chat_template": templates})
    assert found.chat_template == TEMPLATE


def test_sampling_and_ends_are_those_of_generation_config(base):
    values = {
        "temperature": 0.3, "top_p": 0.8, "top_k": 7, "min_p": 0.01, "repetition_penalty": 1.1,
        "max_new_tokens": 40, "eos_token_id": 5, "transformers_version": "5.0", "pad_token_id": 1,
    }  # fmt: skip
    found = said(base, generation_config_DOT_json=values)
    assert found.sampling == SamplingDefaults(
        temperature=0.3, top_p=0.8, top_k=7, min_p=0.01, repetition_penalty=1.1, max_tokens=40
    )
    assert found.eos_token_ids == [5]


def test_an_adapter_that_does_not_sample_is_greedy(base):
    found = said(base, generation_config_DOT_json={"do_sample": False, "temperature": 0.6})
    assert found.sampling.temperature == 0.0


def test_wefts_own_file_wins_over_generation_config(base):
    found = said(
        base,
        generation_config_DOT_json={"temperature": 0.3, "top_k": 7, "eos_token_id": [9, 5]},
        weft_DOT_json={
            "system_prompt": "Be brief.",
            "stop": ["END", "\n\n"],
            "sampling": {"temperature": 0, "presence_penalty": 0.5},
        },
    )
    assert found == AdapterDefaults(
        system_prompt="Be brief.",
        stop=["END", "\n\n"],
        sampling=SamplingDefaults(temperature=0.0, top_k=7, presence_penalty=0.5),
        eos_token_ids=[5, 9],
    )


def test_one_stop_string_needs_no_list(base):
    assert said(base, weft_DOT_json={"stop": "END"}).stop == ["END"]


def test_null_says_nothing(base):
    assert said(base, weft_DOT_json=dict.fromkeys(("system_prompt", "stop", "sampling"))) is None


def test_special_tokens_are_told_where_they_are_not_the_bases(base):
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        "pad_token": "<|endoftext|>",  # as in the base
    }
    found = said(base, tokenizer_config_DOT_json=config)
    assert found.special_tokens == {"eos_token": "<|endoftext|>"}


def test_a_tokenizer_saved_beside_the_adapter_unchanged_says_only_its_template(
    base, reference, tmp_path
):
    reference("byte_level").save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = defaults.read(MemoryFiles({"/a": files}), "/a", base)
    assert found == AdapterDefaults(chat_template=CHATML)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("chat_template.jinja", "{% for m in %}", r"chat_template.jinja: line 1: .*mend the"),
        ("chat_template.jinja", "a\n{{ m|nofilter }}", r"chat_template.jinja: line 2: .*nofilter"),
        ("chat_template.jinja", b"\xff{{ messages }}", "chat_template.jinja: it is no UTF-8"),
        ("chat_template.jinja", "{% if 1 %}" * 3000, "chat_template.jinja: "),
        ("chat_template.jinja", "{% for a in b %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
        ("tokenizer_config.json", {"chat_template": "{{"}, "chat_template: line 1"),
        ("tokenizer_config.json", {"chat_template": 7}, "tokenizer_config.json: chat_template: 7"),
        ("tokenizer_config.json", {"chat_template": [{"name": "rag"}]}, "is named default"),
        (
            "tokenizer_config.json",
            {"chat_template": "x" * 70_000},
            "chat_template: more than 65536",
        ),
        ("tokenizer_config.json", {"eos_token": "<none>"}, "eos_token: '<none>' is no token"),
        ("tokenizer_config.json", {"eos_token": 3}, "tokenizer_config.json: eos_token: Expected"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: it is no JSON"),
        ("tokenizer_config.json", '{"a": 1, "a": 2}', "a name occurs twice"),
        ("generation_config.json", {"top_p": "high"}, "generation_config.json: top_p: Expected"),
        ("generation_config.json", {"temperature": 3}, "temperature: 3.0 is not in 0 .. 2"),
        ("generation_config.json", '{"temperature": NaN}', "temperature: nan is not in 0 .. 2"),
        ("generation_config.json", {"max_new_tokens": 0}, "max_tokens: 0 is less than 1"),
        ("generation_config.json", {"eos_token_id": 10**6}, "eos_token_id: 1000000 is no token"),
        ("generation_config.json", {"eos_token_id": [-1]}, "eos_token_id: -1 is no token"),
        ("generation_config.json", {"eos_token_id": [1] * 65}, "eos_token_id: 65 tokens"),
        ("generation_config.json", [], "generation_config.json: it: Expected `object`"),
        ("weft.json", "system_prompt: Be brief.", "weft.json: it is no JSON"),
        ("weft.json", {"sytem_prompt": "a"}, "sytem_prompt: no such field; did you mean 'system_"),
        ("weft.json", {"tools": []}, "tools: no such field; there are system_prompt, stop, sampl"),
        ("weft.json", {"sampling": {"top_n": 1}}, r"sampling.top_n: no such field; did you mean"),
        ("weft.json", {"sampling": {"top_k": "all"}}, r"weft.json: sampling.top_k: Expected"),
        ("weft.json", {"sampling": {"top_p": 0}}, r"weft.json: sampling: top_p: 0 leaves no token"),
        ("weft.json", {"sampling": {"temperature": True}}, "sampling.temperature: Expected"),
        ("weft.json", {"system_prompt": ["a"]}, "weft.json: system_prompt: Expected"),
        ("weft.json", {"system_prompt": "x" * 40_000}, "system_prompt: more than 32768"),
        ("weft.json", {"stop": ["a", ""]}, r"weft.json: stop\[1\]: an empty string"),
        ("weft.json", {"stop": [str(i) for i in range(17)]}, "weft.json: stop: 17 strings"),
        ("weft.json", {"stop": ["x" * 1025]}, r"weft.json: stop\[0\]: 1025 characters"),
        ("weft.json", '{"system_prompt": "\\ud800"}', "weft.json: it is no JSON"),
        ("weft.json", "[" * 100_000, "weft.json: it is no JSON"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_field(base, file, content, match):
    with pytest.raises(BadAdapter, match=match) as refusal:
        said(base, **{file.replace(".", "_DOT_"): content})
    assert len(str(refusal.value)) < 500


def test_no_more_than_so_much_is_taken_in_all(base):
    wide = "\U0001f9f5"  # four bytes
    with pytest.raises(BadAdapter, match=r"take 180\d+ bytes together; at most 131072"):
        said(
            base,
            chat_template_DOT_jinja="x" * 60_000,
            weft_DOT_json={"system_prompt": wide * 30_000},
        )


def test_what_a_reader_may_not_say_is_noticed_without_the_files():
    for bad in (
        AdapterDefaults(sampling=SamplingDefaults(temperature=float("nan"))),
        AdapterDefaults(stop=[""]),
        AdapterDefaults(system_prompt="x" * 140_000),
    ):
        with pytest.raises(BadAdapter):
            defaults.check(
                msgspec.msgpack.decode(msgspec.msgpack.encode(bad), type=AdapterDefaults)
            )
