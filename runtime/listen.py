"""The socket of the address at which a run is asked over HTTP."""

from __future__ import annotations

import errno
import socket

from weft.runtime.config import Config, ConfigError

# Connections that wait to be accepted: as many as a burst of clients opens at once.
BACKLOG = 2048

# Errors that another port would mend.
_OF_THE_PORT = (errno.EADDRINUSE, errno.EACCES)


def listen(config: Config) -> socket.socket:
    """Return a listening socket. Raises ``ConfigError`` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror).partition(" (while attempting")[0]  # which the message says
        option = "--port" if error.errno in _OF_THE_PORT else "--host"
        raise ConfigError(
            f"cannot listen on {config.host}, port {config.port}: {reason}; choose another {option}"
        ) from None
