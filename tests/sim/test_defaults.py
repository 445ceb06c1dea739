"""Adapters of the same weights whose folders say different things, replaced while they are used."""

import random

import pytest
from msgspec.structs import replace

from tests.sim.client import Plan
from tests.sim.files import adapter_folder
from tests.sim.flow import Flow
from tests.sim.shelves import Walker
from weft.actors.tokenizer.guarded import GuardedTokenizer
from weft.runtime.messages import AdapterAnswer, ChatMessage, LoadAdapter, Sampling, Submit

WEIGHTS = adapter_folder(50)
LONG = "a long beginning that all of them share "
TEMPLATES = tuple(f"{LONG}{number} {{{{ messages[0].content }}}}" for number in range(4))


class Names:
    """Clients that talk to a name, and one that replaces what its folder says."""

    def __init__(self, seed, model, folder):
        self.rng = random.Random(f"templates {seed}")
        self.flow = Flow(seed, model, folder, adapter_roots=["/t"])
        self.tokenizer = GuardedTokenizer(model.backend, None)
        for number, template in enumerate(TEMPLATES):
            said = {"chat_template.jinja": template.encode()}
            self.flow.files.folders[f"/t/{number}"] = WEIGHTS | said
        self.walkers = [Walker() for _ in range(3)]
        for number, walker in enumerate(self.walkers):
            self.flow.world.spawn("client", walker, name=f"walker{number}")
        self.chats = []  # (submit, heard, which templates it may have met)
        self.label = 0

    def load(self, number, *, wait):
        self.label += 1
        label = f"l{self.label}"
        self.walkers[0].say(LoadAdapter(label, "n", f"/t/{number}", replace=True))
        if wait:
            self.flow.wait(lambda: self.walkers[0].operations[label] is not None)
        return label

    def chat(self, may_meet):
        self.label += 1
        walker = self.rng.choice(self.walkers)
        text = "".join(self.rng.choices("abc ", k=self.rng.randrange(1, 12)))
        sampling = Sampling(seed=self.label, max_tokens=self.rng.randrange(1, 9))
        message = ChatMessage(role="user", content=text)
        submit = Submit(f"c{self.label}", "n", [message], sampling=sampling)
        walker.say(submit)
        self.chats.append((submit, walker.requests[submit.label], may_meet))

    def judge(self, submit, heard, may_meet):
        """Assert that one of the templates explains an answer."""
        assert heard.refused is None, heard.refused
        found = []
        for number in may_meet:
            text = f"{LONG}{number} {submit.messages[0].content}"
            prompt = self.tokenizer.encode_rendered(text)
            plain = replace(submit, messages=None, prompt=prompt)
            try:
                self.flow.assert_answered(Plan(plain, 0), heard)
            except AssertionError as error:
                found.append(error)
            else:
                return
        raise AssertionError(f"none of {may_meet} explains {heard}: {found}")

    def is_over(self):
        return all(heard.is_over for _, heard, _ in self.chats)


@pytest.mark.parametrize("seed", range(4))
def test_a_chat_has_the_template_that_its_name_meant(seed, model, folder):
    names = Names(seed, model, folder)
    now = 0
    assert names.load(now, wait=True)
    for _ in range(25):
        then = names.rng.randrange(len(TEMPLATES))
        for _ in range(names.rng.randrange(3)):
            names.chat({now})
        label = names.load(then, wait=False)
        for _ in range(names.rng.randrange(3)):
            names.chat({now, then})
        # What is said before a load is answered may be taken in before it, or after.
        pending = [chat for chat in names.chats if not chat[1].is_over and not chat[1].accepted]
        for chat in pending:
            chat[2].add(then)
        names.flow.wait(lambda label=label: names.walkers[0].operations[label] is not None)
        answer = names.walkers[0].operations[label]
        assert isinstance(answer, AdapterAnswer)
        assert answer.outcome == ("already_loaded" if now == then else "replaced")
        now = then
    names.flow.wait(names.is_over)
    for chat in names.chats:
        names.judge(*chat)
    names.flow.run()
    names.flow.assert_all_is_back()


def test_templates_that_begin_alike_share_what_was_computed(model, folder):
    names = Names(0, model, folder)
    cached = []
    for number in range(2):
        names.load(number, wait=True)
        names.chat({number})
        names.flow.wait(names.is_over)
        _, heard, _ = names.chats[-1]
        cached.append(heard.ends[0].cached_tokens)
    shared = len(names.tokenizer.encode_rendered(LONG))
    block = names.flow.config.block_size
    assert cached == [0, shared // block * block]
