"""What several tests of the runtime share: a small topology and its messages."""

from weft.runtime.endpoint import Mail
from weft.runtime.messages import ListModels, Models, Refused, Submit
from weft.runtime.topology import CLIENT, Edge, Process, Topology

# One server with clients, a process that connects to it, and one that it connects to.
SMALL = Topology(
    processes=tuple(Process(role, "", "") for role in ("back", "server", "store")),
    edges=(
        Edge(CLIENT, "server", (Submit, ListModels), (Refused, Models), 8, 8),
        Edge("store", "server", (Models,), (ListModels,), 8, 8),
        Edge("server", "back", (Submit,), (Refused,), 8, 8),
    ),
)


def submit(label="a"):
    return Submit(label, prompt="hello")


def messages(mailbox):
    """Everything that has arrived, as (source, message)."""
    return [tuple(event) for event in mailbox.take(64, 0.0) if isinstance(event, Mail)]
