import socket

import pytest

from weft.runtime.config import Config, ConfigError
from weft.runtime.listen import listen


def config(host, port=0):
    return Config(model="/m", host=host, port=port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_any_free_port_is_found(host):
    with listen(config(host)) as listener:
        socket.create_connection(listener.getsockname()).close()


def test_a_port_in_use_is_refused():
    with listen(config("127.0.0.1")) as taken:
        port = taken.getsockname()[1]
        expected = f"port {port}: Address already in use; choose another --port"
        with pytest.raises(ConfigError, match=f"^cannot listen on 127.0.0.1, {expected}$"):
            listen(config("127.0.0.1", port))


@pytest.mark.parametrize(
    ("host", "reason"),
    [("no name", "Name or service not known"), ("192.0.2.1", "Cannot assign requested address")],
)
def test_an_address_that_is_not_here_is_refused(host, reason):
    expected = f"cannot listen on {host}, port 0: {reason}; choose another --host"
    with pytest.raises(ConfigError, match=f"^{expected}$"):
        listen(config(host))
