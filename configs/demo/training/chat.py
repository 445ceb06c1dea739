"""The chat format: ChatML, as plain text and as the template that the tokenizer carries."""

from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
START_OF_MESSAGE = "<|im_start|>"
END_OF_MESSAGE = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_MESSAGE, END_OF_MESSAGE)

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; the role is system, user or assistant."""

    role: str
    content: str


def render(messages: list[Message]) -> str:
    """Return the conversation as TEMPLATE renders it."""
    return "".join(
        f"{START_OF_MESSAGE}{message.role}\n{message.content}{END_OF_MESSAGE}\n"
        for message in messages
    )


def question(prompt: str) -> str:
    """Return the text after which the assistant's answer to a single user message begins."""
    return render([Message("user", prompt)]) + f"{START_OF_MESSAGE}assistant\n"
