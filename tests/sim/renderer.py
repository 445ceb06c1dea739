"""Renders chats in this process, for templates that are known to end."""

from weft.actors import chat_templates
from weft.actors.tokenizer.rendering import Rendered, Text, Unrendered


class DirectRenderer:
    """Renders as soon as it is asked; is silent as long as it is slow."""

    def __init__(self):
        self.is_slow = False
        self.forgotten = []
        self._tickets = 0
        self._done = []

    def start(self, job):
        self._tickets += 1
        self._done.append(Rendered(self._tickets, self._render(job)))
        return self._tickets

    def forget(self, ticket):
        self.forgotten.append(ticket)
        self._done = [rendered for rendered in self._done if rendered.ticket != ticket]

    def finished(self):
        if self.is_slow:
            return []
        done, self._done = self._done, []
        return done

    def _render(self, job):
        try:
            template = chat_templates.compiled(job.template)
            return Text(chat_templates.render(template, job.chat, job.variables))
        except chat_templates.FAILURES as error:
            return Unrendered(str(error))
