# ruff: noqa: RUF001
"""Small tokenizers of the kinds that models use, trained here, with chat templates."""

import functools
import json

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's 12:30, isn't it?",
    "def weave(warp, weft):\n    return [w + x for w, x in zip(warp, weft)]\n",
    "Überraschung: die Größe des Gewebes beträgt 42 m². Ça va, naïve café?",
    "織物は縦糸と横糸でできている。 你好，世界！ Привет, мир. 🙂👍🏽",
    '<tool_call> {"name": "loom"} </tool_call> im_end im_start user assistant system',
] * 4

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message.name is defined %}{{ ' name=' + message['name'] }}{% endif %}"
    "{{ '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% if tools is defined and tools %}{{ 'Call as <tool_call>{}</tool_call>.' }}{% endif %}"
)

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

KINDS = ("byte_level", "metaspace", "legacy", "mistral")


def special(content, **flags):
    return AddedToken(content, special=True, normalized=flags.pop("normalized", False), **flags)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([special("<|endoftext|>"), special("<|im_start|>")])
    tokenizer.add_tokens([special("<|im_end|>"), special("<|pad|>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def sentence_piece(*, is_legacy=False, is_normalized=False, template=LLAMA2, control=()):
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if is_legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=90)
    words.train_from_iterator(TEXTS, trainer)
    model = json.loads(words.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: i for i, piece in enumerate([*specials, *byte_tokens, *pieces])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer.model = models.BPE(
        vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    tokenizer.add_tokens([special(token, normalized=is_normalized) for token in specials])
    tokenizer.add_tokens([special(token) for token in control])
    bos = ("<s>", vocabulary["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )


@functools.cache
def save(kind, folder):
    """Save a tokenizer with the model files around it, as a model's folder has them."""
    tokenizer = {
        "byte_level": byte_level,
        "metaspace": sentence_piece,
        "legacy": functools.partial(sentence_piece, is_legacy=True),
        "normalized": functools.partial(sentence_piece, is_normalized=True),
        "mistral": functools.partial(
            sentence_piece, template=MISTRAL, control=("[INST]", "[/INST]")
        ),
    }[kind]()
    path = folder / kind
    tokenizer.save_pretrained(path)
    config = {
        "model_type": "llama",
        "vocab_size": len(tokenizer) + 8,  # embeddings are often padded
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
