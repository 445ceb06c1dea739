"""A client's session and the endpoints of the two processes it talks to, frame by frame."""

from weft.runtime.client.session import Session
from weft.runtime.endpoint import Endpoint, Mail
from weft.runtime.topology import CLIENT, TOPOLOGY, Process, Topology

# The processes that a client sees, without those behind them.
FRONT = Topology(
    processes=(Process("tokenizer", "", ""), Process("detokenizer", "", "")),
    edges=tuple(edge for edge in TOPOLOGY.edges if edge.connects == CLIENT),
)


class Weft:
    """Both ends. ``settle`` moves frames until there are none."""

    def __init__(self, epoch=1):
        self.session = Session()
        self.endpoints = {
            role: Endpoint(role, FRONT, identity=role, epoch=epoch)
            for role in ("tokenizer", "detokenizer")
        }
        self.heard = []  # by the tokenizer
        self.settle()

    def settle(self):
        while self._move():
            pass

    def say(self, message, role="detokenizer"):
        """Have a process send to the client."""
        self.endpoints[role].send("client", message)
        self.settle()

    def ask(self, prompt="hello", model=None, **sampling):
        request = self.session.submit(
            lambda: None, model=model, messages=None, prompt=prompt, sampling=sampling
        )
        self.settle()
        return request

    def _move(self):
        moved = False
        for link in (self.session.tokenizer, self.session.detokenizer):
            endpoint = self.endpoints[link.peer]
            while link.outgoing:
                endpoint.receive(link.peer, b"client", [link.outgoing.popleft()])
                moved = True
            while endpoint.outgoing:
                self.session.receive(link, endpoint.outgoing.popleft().frame)
                moved = True
            endpoint.check()
            while endpoint.arrived:
                event = endpoint.arrived.popleft()
                self.heard.append(event.message if isinstance(event, Mail) else event)
        return moved


def events(request):
    """Everything that a request can tell now."""
    found = []
    while request.has_news and (event := request.take()) is not None:
        found.append(event)
    return found
