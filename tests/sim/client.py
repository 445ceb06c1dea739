"""A client that follows a script, and holds what it hears against the protocol's rules."""

from collections import deque
from dataclasses import dataclass, field

from weft.runtime.actor import Send
from weft.runtime.messages import (
    Accepted,
    Cancel,
    End,
    Inspect,
    Models,
    Refused,
    Report,
    Submit,
    Text,
    TextLogprobs,
)


@dataclass
class Plan:
    """A request that a client will make."""

    submit: Submit
    after_ns: int
    cancel_after_texts: int | None = None
    cancels: int = 1  # times that it says so
    is_cancelled: bool = False


@dataclass
class Heard:
    """What a client was told of one request."""

    refused: Refused | None = None
    accepted: Accepted | None = None
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    ends: dict[int, End] = field(default_factory=dict)
    logprobs: dict[int, list[TextLogprobs]] = field(default_factory=dict)
    messages: int = 0

    @property
    def is_over(self):
        if self.refused is not None:
            return True
        return self.accepted is not None and len(self.ends) == self.accepted.choices


class ScriptedClient:
    """Sends what is planned as far as its credit goes, and notes every answer."""

    def __init__(self, plans):
        self.plans = sorted(plans, key=lambda plan: plan.after_ns)
        self.heard = {plan.submit.label: Heard() for plan in plans}
        self._unsent = deque(self.plans)
        self._cancelling = []  # plans that were sent and may yet be cancelled
        self._left = len(self.heard)  # how many are not over
        self.messages = 0
        self.reports = []
        self._inspections = 0
        self._questions = []
        self._sequences = {}  # live: number -> (Heard, choice)

    @property
    def is_over(self):
        return len(self.reports) == self._inspections and not self._left

    def inspect(self):
        self._inspections += 1
        self._questions.append(Inspect(f"inspection{self._inspections}"))

    def receive(self, source, message, now_ns):
        self.messages += 1
        match message:
            case Refused(label):
                assert not self.heard[label].is_over
                assert not self.heard[label].accepted
                self.heard[label].refused = message
                self._left -= 1
            case Accepted(label, _, first_sequence, choices):
                heard = self.heard[label]
                assert not heard.is_over
                assert heard.accepted is None
                heard.accepted = message
                for choice in range(choices):
                    assert first_sequence + choice not in self._sequences
                    self._sequences[first_sequence + choice] = heard, choice
                    heard.texts[choice] = ""
                    heard.logprobs[choice] = []
            case Text():
                self._read(message)
            case Report(label):
                assert label not in {report.label for report in self.reports}
                self.reports.append(message)
            case Models():
                raise AssertionError("nobody asked")
        return []

    def advance(self, turn):
        if not turn.room("detokenizer"):
            return []  # an answer would have no way back
        messages = []
        room = turn.room("tokenizer")
        while self._unsent and self._unsent[0].after_ns <= turn.now_ns and len(messages) < room:
            plan = self._unsent.popleft()
            messages.append(plan.submit)
            if plan.cancel_after_texts is not None:
                self._cancelling.append(plan)
        for plan in list(self._cancelling):
            heard = self.heard[plan.submit.label]
            if heard.is_over:
                self._cancelling.remove(plan)
            elif heard.messages >= plan.cancel_after_texts and len(messages) + plan.cancels <= room:
                self._cancelling.remove(plan)
                plan.is_cancelled = True
                messages += [Cancel(plan.submit.label)] * plan.cancels
        while len(messages) < room and self._questions:
            messages.append(self._questions.pop())
        return [Send("tokenizer", message) for message in messages]

    def lost(self, peer, now_ns):
        raise AssertionError(f"{peer} is lost")

    def check(self):
        pass

    def _read(self, text):
        assert len(set(text.sequences)) == len(text.sequences) == len(text.texts)
        ended = {end.sequence for end in text.ends}
        assert len(ended) == len(text.ends)
        assert ended <= set(text.sequences)
        with_logprobs = {entry.index for entry in text.logprobs}
        for index, sequence in enumerate(text.sequences):
            heard, choice = self._sequences[sequence]  # nothing comes after the end
            assert text.texts[index] or sequence in ended or index in with_logprobs
            heard.texts[choice] += text.texts[index]
            heard.messages += 1
        for entry in text.logprobs:
            heard, choice = self._sequences[text.sequences[entry.index]]
            heard.logprobs[choice].append(entry)
        for end in text.ends:
            heard, choice = self._sequences.pop(end.sequence)
            heard.ends[choice] = end
            self._left -= heard.is_over
