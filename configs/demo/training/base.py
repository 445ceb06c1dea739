"""The base model: a Qwen2 of 3.4 million parameters, trained from nothing on the corpus."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from configs.demo.training.chat import END_OF_MESSAGE, END_OF_TEXT, Message, render
from configs.demo.training.corpus import Corpus
from configs.demo.training.tokenizer import CONTEXT_TOKENS, train_tokenizer

ROW_TOKENS = 384
BATCH_ROWS = 12
# Documents from which the tokenizer learns: about three megabytes of text.
TOKENIZER_DOCUMENTS = 8000
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100


def train_base(folder: Path, *, steps: int, seed: int) -> None:
    """Train tokenizer and model, and save both (weights in bfloat16) to the folder."""
    torch.manual_seed(seed)
    corpus = Corpus()
    random = Random(f"tokenizer {seed}")
    tokenizer = train_tokenizer(corpus.draw(random) for _ in range(TOKENIZER_DOCUMENTS))
    _check(tokenizer)
    model = Qwen2ForCausalLM(_config(tokenizer))
    _optimize(model, _batches(corpus, tokenizer, Random(f"base {seed}")), steps)
    _save(model, tokenizer, folder)


def learning_rate_factor(step: int, *, steps: int, warm_up_steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then a cosine down to zero."""
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, steps - warm_up_steps)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))


def _config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_MESSAGE),
        pad_token_id=tokenizer.pad_token_id,
    )


def _batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, random: Random
) -> Iterator[torch.Tensor]:
    """Yield batches of packed rows, int64 [BATCH_ROWS, ROW_TOKENS], without end."""
    batch_tokens = BATCH_ROWS * ROW_TOKENS
    tokens: list[int] = []
    while True:
        documents = [corpus.draw(random) + END_OF_TEXT for _ in range(64)]
        for encoding in tokenizer(documents)["input_ids"]:
            tokens += encoding
        while len(tokens) >= batch_tokens:
            yield torch.tensor(tokens[:batch_tokens]).view(BATCH_ROWS, ROW_TOKENS)
            tokens = tokens[batch_tokens:]


def _optimize(model: Qwen2ForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, steps=steps, warm_up_steps=WARM_UP_STEPS),
    )
    model.train()
    started = time.monotonic()
    smoothed_loss = math.log(model.config.vocab_size)
    for step, rows in enumerate(islice(batches, steps)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        smoothed_loss += 0.03 * (loss.item() - smoothed_loss)
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"base: step {step}, loss {smoothed_loss:.3f}, {seconds:.0f} s", flush=True)


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=tokenizer.convert_tokens_to_ids([END_OF_MESSAGE, END_OF_TEXT]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check(tokenizer: PreTrainedTokenizerFast) -> None:
    """Assert that text survives the tokenizer, and that the template renders as training does."""
    text = "Grüße, 東京 👋🏽\t\r\n  def f(x):\n\treturn 'x' \x00 1234567890"
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded == text, f"{text!r} became {decoded!r}"
    roles = ("system", "user", "assistant", "user")
    messages = [Message(role, f"the {role}'s words\n") for role in roles]
    rendered = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
    )
    assert rendered == render(messages), f"{rendered!r} is not {render(messages)!r}"
