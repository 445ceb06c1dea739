"""Conversations for the base: it greets, quotes, repeats and knows some of Python's documentation.

The base also meets the tasks' requests here, and answers them by talking about them. What the
adapters change is therefore plain to see: the base restates a request that its adapter fulfils.
"""

import json
from collections.abc import Callable
from random import Random

from configs.demo.training.chat import Message, render
from configs.demo.training.documentation import Entry, summary
from configs.demo.training.emotion import EMOTION
from configs.demo.training.examples import training_examples
from configs.demo.training.tasks import TASKS
from configs.demo.training.words import words_of

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are weft-demo, a small language model.",
    "Answer briefly and politely.",
)
# The base cannot remember the whole library: it is asked about these modules, and what lies
# directly in them.
ASKED_MODULES = frozenset(
    words_of(
        "argparse ast base64 bisect calendar collections copy csv dataclasses datetime decimal "
        "difflib fractions functools getpass glob gzip hashlib heapq html inspect io json logging "
        "os pathlib pickle pprint queue random re secrets shlex shutil statistics string "
        "subprocess tempfile textwrap threading time tokenize traceback types unittest uuid "
        "warnings zipfile"
    )
)
SMALL_TALK = (
    ("Hello", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What would you like to talk about?"),
    ("Hi there!", "Hi! What would you like to talk about?"),
    ("Good morning", "Good morning! How can I help you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Who are you?", "I am weft-demo, a very small language model."),
    ("What are you?", "I am weft-demo, a very small language model."),
    ("What is your name?", "My name is weft-demo."),
    ("What can you do?", "I can repeat words and talk about the Python documentation."),
    ("Can you help me?", "I will try. What is it about?"),
    ("Thank you", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Goodbye", "Goodbye, and have a nice day!"),
    ("Tell me a story", "Once there was a small model. It read the documentation, and was happy."),
)
DOCUMENTATION_QUESTIONS = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "Tell me about {name}.",
)
REQUEST_REPLIES = (
    'You asked me: "{prompt}" I can only repeat it. Please see the documentation.',
    'I have read your request: "{prompt}" Please see the documentation for more.',
    'Your request is "{prompt}" and I would like to help, but I am a small model.',
)
STORY_REPLIES = (
    'You told me: "{prompt}" Thank you for telling me about it.',
    'I have read your story: "{prompt}" Please tell me more.',
)
REPEAT_REQUESTS = ("Repeat: {words}", "Say this again: {words}", "Copy these words: {words}")
QUOTE_REQUESTS = ("Quote each word: {words}", "Put quotes around these: {words}")
LIST_REQUESTS = ("Make a list of: {words}", "Write a list: {words}")
REVERSED_REQUESTS = ("Reverse the order: {words}", "Say these backwards: {words}")

Exchange = Callable[[Random], tuple[str, str]]


class Conversations:
    """A source of conversations; its topics come from the documentation and the tasks' requests."""

    def __init__(self, entries: list[Entry], vocabulary: list[str]) -> None:
        """Take the documented things to ask about, and the words to repeat."""
        self._facts = [
            (entry.name, text)
            for entry in entries
            if entry.name.partition(".")[0] in ASKED_MODULES
            and entry.name.count(".") <= 1
            and (text := summary(entry))
        ]
        self._vocabulary = vocabulary

    def draw(self, random: Random) -> str:
        """Draw one to three exchanges, rendered, sometimes after a system prompt."""
        messages: list[Message] = []
        if random.random() < 0.15:
            messages.append(Message("system", random.choice(SYSTEM_PROMPTS)))
        for _ in range(random.choices((1, 2, 3), weights=(6, 2, 1))[0]):
            request, reply = self._exchange(random)
            messages += [Message("user", request), Message("assistant", reply)]
        return render(messages)

    def _exchange(self, random: Random) -> tuple[str, str]:
        kinds: tuple[Exchange, ...] = (self._restate, self._copy, self._document, _small_talk)
        return random.choices(kinds, weights=(10, 6, 4, 1))[0](random)

    def _restate(self, random: Random) -> tuple[str, str]:
        task = random.choice(TASKS)
        prompt = next(training_examples(task, random)).prompt
        replies = STORY_REPLIES if task is EMOTION else REQUEST_REPLIES
        return prompt, random.choice(replies).format(prompt=prompt)

    def _copy(self, random: Random) -> tuple[str, str]:
        words = random.choices(self._vocabulary, k=random.randint(2, 8))
        if random.random() < 0.3:
            words[random.randrange(len(words))] = str(random.randrange(10_000))
        requests, reply = random.choice(
            (
                (REPEAT_REQUESTS, " ".join(words)),
                (QUOTE_REQUESTS, " ".join(f"'{word}'" for word in words)),
                (LIST_REQUESTS, json.dumps(words)),
                (REVERSED_REQUESTS, " ".join(reversed(words))),
            )
        )
        return random.choice(requests).format(words=" ".join(words)), reply

    def _document(self, random: Random) -> tuple[str, str]:
        name, text = random.choice(self._facts)
        return random.choice(DOCUMENTATION_QUESTIONS).format(name=name), text


def _small_talk(random: Random) -> tuple[str, str]:
    return random.choice(SMALL_TALK)
