"""Sampling parameters: which are refused, and what stands for those that are not given."""

from __future__ import annotations

from weft.actors.tokenizer.generation_config import GenerationDefaults
from weft.actors.tokenizer.refusal import need
from weft.runtime.messages import RowSampling, Sampling

CHOICES_MAX = 128
STOPS_MAX = 16
# A stop string's length bounds how much text is held back for it.
STOP_CHARACTERS_MAX = 1024
STOP_TOKENS_MAX = 1024
LOGPROBS_MAX = 20
LOGIT_BIASES_MAX = 1024
# Sensible ones lie near 1; far from it, logits divided by one are not finite any more.
REPETITION_PENALTIES = (0.01, 100.0)


def check(sampling: Sampling) -> None:
    """Raise ``Refusal`` for the first value out of its range, naming it.

    ``check_tokens`` says the same of token ids, for which the model or adapter must be known.
    """
    need(
        sampling.max_tokens is None or sampling.max_tokens >= 1,
        "max_tokens",
        f"{sampling.max_tokens} is less than 1",
    )
    need(sampling.min_tokens >= 0, "min_tokens", f"{sampling.min_tokens} is negative")
    need(
        sampling.max_tokens is None or sampling.min_tokens <= sampling.max_tokens,
        "min_tokens",
        f"{sampling.min_tokens} is more than max_tokens ({sampling.max_tokens})",
    )
    _check_range("temperature", sampling.temperature, 0.0, 2.0)
    _check_range("top_p", sampling.top_p, 0.0, 1.0)
    need(
        sampling.top_p != 0,
        "top_p",
        "0 leaves no token; for the most likely one set temperature to 0",
    )
    need(
        sampling.top_k is None or sampling.top_k >= -1,
        "top_k",
        f"{sampling.top_k} is no number of tokens; 0 or -1 means all",
    )
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    need(
        sampling.seed is None or -(2**63) <= sampling.seed < 2**63,
        "seed",
        "it must fit into 64 bits, signed",
    )
    need(1 <= sampling.n <= CHOICES_MAX, "n", f"{sampling.n} is not in 1 .. {CHOICES_MAX}")
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check_range("repetition_penalty", sampling.repetition_penalty, *REPETITION_PENALTIES)
    _check_stops(sampling)
    _check_logits(sampling)


def check_tokens(sampling: Sampling, vocab_size: int) -> None:
    """Raise ``Refusal`` for the first token that is none of so many."""
    named = {"stop_token_ids": sampling.stop_token_ids, "logit_bias": sampling.logit_bias}
    for param, tokens in named.items():
        for token in tokens:
            need(
                0 <= token < vocab_size,
                param,
                f"{token} is no token of the model; ids are 0 .. {vocab_size - 1}",
            )


def stop_tokens(sampling: Sampling, eos_token_ids: tuple[int, ...]) -> list[int]:
    """Return the tokens that end a sequence."""
    eos = () if sampling.ignore_eos else eos_token_ids
    return sorted({*eos, *sampling.stop_token_ids})


def stops(sampling: Sampling, own: tuple[str, ...]) -> list[str]:
    """Return the strings that end a sequence: the request's, and the adapter's own.

    Those are as much the end of its answer as its end-of-sequence tokens, and ignored with them.
    """
    return list(dict.fromkeys([*sampling.stop, *(() if sampling.ignore_eos else own)]))


def fill(
    sampling: Sampling, defaults: GenerationDefaults, *, seed: int, stop_token_ids: list[int]
) -> RowSampling:
    """Return checked sampling with every default filled in; ``seed`` is for a request without."""

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return RowSampling(
        temperature=given(sampling.temperature, defaults.temperature),
        top_p=given(sampling.top_p, defaults.top_p),
        top_k=max(0, defaults.top_k if sampling.top_k is None else sampling.top_k),
        min_p=given(sampling.min_p, defaults.min_p),
        seed=seed if sampling.seed is None else sampling.seed % 2**63,
        presence_penalty=given(sampling.presence_penalty, defaults.presence_penalty),
        frequency_penalty=given(sampling.frequency_penalty, defaults.frequency_penalty),
        repetition_penalty=given(sampling.repetition_penalty, defaults.repetition_penalty),
        logit_bias=sampling.logit_bias,
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
        min_tokens_banned=stop_token_ids if sampling.min_tokens else [],
    )


def _check_range(param: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN fails.
    need(value is None or low <= value <= high, param, f"{value} is not in {low:g} .. {high:g}")


def _check_stops(sampling: Sampling) -> None:
    need(
        len(sampling.stop) <= STOPS_MAX,
        "stop",
        f"{len(sampling.stop)} strings; at most {STOPS_MAX} are taken",
    )
    for index, stop in enumerate(sampling.stop):
        need(stop != "", f"stop[{index}]", "an empty string would stop everything; leave it out")
        need(
            len(stop) <= STOP_CHARACTERS_MAX,
            f"stop[{index}]",
            f"{len(stop)} characters; at most {STOP_CHARACTERS_MAX} are taken",
        )
    need(
        len(sampling.stop_token_ids) <= STOP_TOKENS_MAX,
        "stop_token_ids",
        f"{len(sampling.stop_token_ids)} tokens; at most {STOP_TOKENS_MAX} are taken",
    )


def _check_logits(sampling: Sampling) -> None:
    need(
        sampling.logprobs is None or 0 <= sampling.logprobs <= LOGPROBS_MAX,
        "logprobs",
        f"{sampling.logprobs} is not in 0 .. {LOGPROBS_MAX}",
    )
    need(
        len(sampling.logit_bias) <= LOGIT_BIASES_MAX,
        "logit_bias",
        f"{len(sampling.logit_bias)} tokens; at most {LOGIT_BIASES_MAX} are taken",
    )
    for token, bias in sampling.logit_bias.items():
        need(-100 <= bias <= 100, "logit_bias", f"{bias} for token {token} is not in -100 .. 100")
