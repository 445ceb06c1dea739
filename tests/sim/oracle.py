"""What each request must be answered, from the model's definition and the whole text alone."""

from itertools import repeat

from tests.sim.fake_engine import computed_by, generate, is_failing, logprobs_of
from weft.actors.detokenizer.vocabulary import Vocabulary
from weft.actors.tokenizer.refusal import Refusal


class Oracle:
    """Knows every answer. ``digest`` maps the name of an adapter to its content, or refuses."""

    def __init__(self, model, config, *, pages, adapter_pages, digest, vanished, invocations):
        self._model = model
        self._bytes_of = Vocabulary(model.backend).bytes_of
        self._config = config
        self._pages = pages
        self._adapter_pages = adapter_pages  # by name
        self._digest = digest
        self._vanished = vanished  # names whose weights are not there any more
        self._invocations = invocations  # of activated adapters, by name

    def check(self, plan, heard, *, is_cut_off=False, is_drained=False):
        """Assert that an answer is right.

        The end is missing only if the client was cut off. In a drain, what has not been answered at
        all came when the tokenizer had left.
        """
        if heard.refused is not None:
            codes = self._refusals(plan) | ({"draining"} if is_drained else set())
            assert heard.refused.code in codes, (plan, heard)
        elif heard.accepted is None:
            assert is_cut_off or is_drained, (plan, heard)
        else:
            assert not self._faults(plan.submit), (plan, heard)
            assert heard.accepted.choices == plan.submit.sampling.n
            assert heard.accepted.prompt_tokens == len(self._prompt(plan.submit))
            for choice, text in heard.texts.items():
                if choice in heard.ends:
                    self._check_choice(plan, choice, text, heard.ends[choice])
                    self._check_logprobs(plan.submit, choice, heard)
                else:
                    assert is_cut_off, (plan, heard)
                    self._check_start(plan.submit, choice, text)

    def _refusals(self, plan):
        codes = self._faults(plan.submit)
        if self._config.max_queued_requests < 100:
            codes.add("queue_full")
        if plan.is_cancelled:
            codes.add("cancelled")
        return codes

    def _faults(self, submit):
        """What is wrong with a request. With several faults, any may be named."""
        codes = set()
        if submit.lora is not None and submit.model not in (None, "base"):
            codes.add("invalid_value")
        asked = asked_of(submit)
        digests = []
        for name in asked:
            try:
                digests.append(self._digest(name))
            except Refusal as refusal:
                codes.add(refusal.code)
        is_twice = len(set(digests)) < len(digests) or len(set(asked)) < len(list(_pairs(submit)))
        if is_twice or len(list(_pairs(submit))) > self._config.row_loras_max:
            codes.add("invalid_value")
        if any(name in self._invocations for name in used_by(submit)):
            if len(used_by(submit)) > 1:
                codes.add("invalid_value")
            if min(map(self._start, used_by(submit), repeat(self._prompt(submit)))) < 0:
                codes.add("invocation_missing")
        room = self._config.max_model_len - len(self._prompt(submit))
        if (submit.sampling.max_tokens or 1) > room:
            codes.add("context_length_exceeded")
        return codes

    def _check_choice(self, plan, choice, text, end):
        submit = plan.submit
        shown = (plan, choice, text, end)
        if self._never_runs(submit):
            reason = "cancelled" if end.reason == "cancelled" and plan.is_cancelled else "error"
            assert (end.reason, end.output_tokens, text) == (reason, 0, ""), shown
            return
        tokens, is_failed = self._tokens(submit, choice)
        if end.reason == "cancelled":
            assert plan.is_cancelled, shown
            assert end.output_tokens <= len(tokens), shown
            tokens = tokens[: end.output_tokens]
        is_ended = bool(tokens) and tokens[-1] in self._stop_tokens(submit)
        whole = self._decode(submit, tokens[:-1] if is_ended else tokens)
        cut = _cut(whole, submit.sampling)
        assert text == (whole if cut is None else cut), shown
        if end.reason == "cancelled":
            return
        reason, error = ("stop" if is_ended else "length"), None
        count = len(tokens)
        if cut is not None:
            reason, count = "stop", self._tokens_until_stop(submit, tokens)
        elif is_failed:
            reason, error = "error", "the model's output was not a finite number"
        assert (end.reason, end.output_tokens, end.error) == (reason, count, error), shown
        assert end.first_step <= end.last_step, shown
        assert 0 <= end.cached_tokens <= len(self._prompt(submit)), shown

    def _check_logprobs(self, submit, choice, heard):
        """Every token that is shown has its own, and no other has."""
        count = submit.sampling.logprobs
        if count is None:
            assert heard.logprobs[choice] == []
            return
        if self._never_runs(submit):
            assert heard.logprobs[choice] == []
            return
        end = heard.ends[choice]
        tokens = self._tokens(submit, choice)[0][: end.output_tokens]
        if tokens and tokens[-1] in self._stop_tokens(submit):
            tokens.pop()
        expected = []
        for token in tokens:
            drawn = logprobs_of(token, count, index=0, vocabulary=self._model.vocab_size)
            rivals = [self._bytes_of(rival) for rival in drawn.top_tokens]
            top = list(zip(rivals, drawn.top, strict=True))
            expected.append((self._bytes_of(token), drawn.chosen, top))
        found = [
            (entry.token_bytes, entry.logprob, [(raw, logprob) for _, raw, logprob in entry.top])
            for entry in heard.logprobs[choice]
        ]
        # Tokens from which a stop string was cut away are not shown.
        is_cut = _cut(self._decode(submit, tokens), submit.sampling) is not None
        assert found == (expected[: len(found)] if is_cut else expected), (submit, end)

    def _check_start(self, submit, choice, text):
        if text:
            whole = self._decode(submit, self._tokens(submit, choice)[0])
            assert whole.startswith(text), (submit, text)

    def _never_runs(self, submit):
        """Whether one of its adapters is gone, or they leave no room for the prompt."""
        too_long = len(self._prompt(submit)) >= self._kv_tokens(submit)
        return any(name in self._vanished for name in used_by(submit)) or too_long

    def _kv_tokens(self, submit):
        """What fits beside its adapters when nobody else is there."""
        taken = sum(self._adapter_pages.get(name, 0) for name in used_by(submit))
        return (self._pages - taken) * self._config.block_size

    def _prompt(self, submit):
        if submit.messages is not None:
            chat = [{"role": m.role, "content": m.content} for m in submit.messages]
            rendered = self._model.render(chat)
            return self._model.backend.encode(rendered, add_special_tokens=False).ids
        if isinstance(submit.prompt, str):
            return self._model.backend.encode(submit.prompt).ids
        return submit.prompt

    def _tokens(self, submit, choice):
        """All tokens that the model draws for one choice, and whether it fails after them."""
        prompt = self._prompt(submit)
        context = min(self._kv_tokens(submit), self._config.max_model_len)
        tokens = generate(
            self._computed_by(submit, prompt),
            prompt,
            max_tokens=min(submit.sampling.max_tokens or context, context - len(prompt)),
            seed=submit.sampling.seed,
            choice=choice,
            stop=self._stop_tokens(submit),
            vocabulary=self._model.vocab_size,
        )
        prompt_tokens, seed = len(prompt), submit.sampling.seed
        for count in range(len(tokens)):
            if is_failing(prompt_tokens + count, seed=seed):
                return tokens[:count], True
        return tokens, False

    def _computed_by(self, submit, prompt):
        uses = sorted((self._digest(name), scale) for name, scale in used_by(submit).items())
        return computed_by(uses, max(map(self._start, used_by(submit), repeat(prompt)), default=0))

    def _start(self, name, prompt):
        """Where an adapter begins to act in a prompt; -1: nowhere."""
        invocation = self._invocations.get(name)
        if invocation is None:
            return 0
        size = len(invocation)
        starts = [i for i in range(len(prompt)) if prompt[i : i + size] == invocation]
        return max(starts, default=-1)

    def _stop_tokens(self, submit):
        return {*self._model.eos_token_ids, *submit.sampling.stop_token_ids}

    def _decode(self, submit, tokens):
        skip = submit.sampling.skip_special_tokens
        return self._model.backend.decode(tokens, skip_special_tokens=skip)

    def _tokens_until_stop(self, submit, tokens):
        return next(
            count
            for count in range(1, len(tokens) + 1)
            if _cut(self._decode(submit, tokens[:count]), submit.sampling) is not None
        )


def asked_of(submit):
    """The adapters that a request names, and by what it multiplies them."""
    return dict(_pairs(submit))


def used_by(submit):
    """The same, without those that are multiplied by nothing."""
    return {name: scale for name, scale in _pairs(submit) if scale}


def _pairs(submit):
    if submit.lora is not None:
        yield from ((lora.name, lora.scale) for lora in submit.lora)
    elif submit.model not in (None, "base"):
        for part in submit.model.split("+"):
            name, _, scale = part.partition(":")
            yield name, float(scale or 1)


def _cut(text, sampling):
    """The text up to the stop string that is complete first, of several the longest; or None."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in sampling.stop if text.endswith(stop, 0, end)]
        if found:
            return text[: end if sampling.include_stop else end - max(found)]
    return None
