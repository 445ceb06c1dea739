"""HTTP as uvicorn reads it, but for what comes before a body: that has a bound."""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from weft.gateway import errors

# Of a request's line and headers; most servers allow as much or less.
HEAD_BYTES_MAX = 65536


class BoundedHeads(HttpToolsProtocol):
    """Refuses a request whose headers do not end, before they fill the memory.

    The parser itself has no limit, and keeps a header until it is complete.
    """

    _head_bytes = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        """Take in bytes; answer 431 and close once too many have come without a head's end."""
        super().data_received(data)
        if not self._is_in_head:
            self._head_bytes = 0
            return
        # The head's first bytes may have come behind the body before it: then it is allowed more.
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that it has ended."""
        super().on_headers_complete()
        self._is_in_head = False


def _response() -> bytes:
    message = f"the request's line and headers exceed {HEAD_BYTES_MAX} bytes"
    body = json.dumps(errors.body(message)).encode()
    head = (
        "HTTP/1.1 431 Request Header Fields Too Large\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


_TOO_LARGE = _response()
