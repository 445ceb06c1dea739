"""The tokenizer: byte-level BPE in which every digit is a token of its own."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs.demo.training.chat import END_OF_MESSAGE, END_OF_TEXT, SPECIAL_TOKENS, TEMPLATE

VOCABULARY_SIZE = 2048
CONTEXT_TOKENS = 2048


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer that `train_tokenizer` made and the folder keeps."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast), f"{type(tokenizer)} in {folder}"
    return tokenizer


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train on the texts; as every byte is a token, any UTF-8 text survives the round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END_OF_MESSAGE,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )
