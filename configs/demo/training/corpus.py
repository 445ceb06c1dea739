"""The base's training text: documentation, conversations, and unlabelled text of the tasks."""

import re
from collections import Counter
from random import Random

from configs.demo.training import words
from configs.demo.training.conversation import Conversations
from configs.demo.training.documentation import library_entries, pieces, reference_pieces
from configs.demo.training.examples import training_examples
from configs.demo.training.tasks import TASKS

# How often each kind of document is drawn: documentation, conversation, text of one task, and
# repetition, from which a small model learns to copy (as every task and the base's chat need) long
# before it would from prose.
WEIGHTS = (20, 50, 18, 12)
# How many of the documentation's most frequent words the copying exercises use.
VOCABULARY_WORDS = 1500


class Corpus:
    """A source of training documents without end."""

    def __init__(self) -> None:
        """Read the documentation; takes a few seconds."""
        entries = library_entries()
        texts = [f"{entry.name}\n{entry.text}" for entry in entries]
        self._documentation = [piece for text in texts for piece in pieces(text)]
        self._documentation += reference_pieces()
        self._vocabulary = _vocabulary(self._documentation)
        self._conversations = Conversations(entries, self._vocabulary)

    def draw(self, random: Random) -> str:
        """Draw one document."""
        kinds = (self._document, self._conversations.draw, _unlabelled, self._repetition)
        return random.choices(kinds, weights=WEIGHTS)[0](random)

    def _document(self, random: Random) -> str:
        return random.choice(self._documentation)

    def _repetition(self, random: Random) -> str:
        """Draw a line of random words and numbers, and repeat it a few times."""
        line = [
            random.choice(self._vocabulary)
            if random.random() < 0.8
            else str(random.randrange(10_000))
            for _ in range(random.randint(3, 20))
        ]
        return "\n".join([" ".join(line)] * random.randint(2, 4))


def _vocabulary(documentation: list[str]) -> list[str]:
    """Return frequent words of the documentation, and the words of the tasks' slots."""
    counts = Counter(
        word for text in documentation for word in re.findall(r"\b[A-Za-z][a-z]{2,}\b", text)
    )
    frequent = [word for word, _ in counts.most_common(VOCABULARY_WORDS)]
    slots = (words.CITIES, words.COUNTRIES, words.COLORS, words.NAMES, words.DAYS, words.ROOMS)
    return frequent + [word for values in slots for word in values] * 3


def _unlabelled(random: Random) -> str:
    """Return lines of one task: answers without their requests, or requests without answers."""
    task = random.choice(TASKS)
    source = training_examples(task, random)
    examples = [next(source) for _ in range(random.randint(2, 6))]
    if task.name == "emotion" or random.random() < 0.2:
        return "\n".join(example.prompt for example in examples)
    return "\n".join(example.answer for example in examples)
