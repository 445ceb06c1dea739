"""What both ends of the wire do with ZeroMQ's contexts."""

from __future__ import annotations

import logging
import threading

import zmq

# Beyond its sockets' linger, how long a context may take to end.
TERM_GRACE_S = 2.0

_log = logging.getLogger(__name__)


def terminate(context: zmq.Context[zmq.Socket[bytes]], *, linger_ms: int) -> None:
    """End a context whose sockets were closed, once what they still had to send has left.

    Every socket must have had its linger before it was connected, bound or disconnected: libzmq's
    own is without end, and what was sent to somebody who is gone then never lets go. Should a
    context not end all the same, nobody waits for it: the thread that does is left behind.
    """
    ender = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    ender.start()
    ender.join(linger_ms / 1000 + TERM_GRACE_S)
    if ender.is_alive():
        _log.warning("ZeroMQ has not let go of its sockets in time")
