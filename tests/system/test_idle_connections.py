"""Connections that clients keep for their next request."""

import http.client
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.system.runs import TIMEOUT_S

pytestmark = pytest.mark.system

# More than the 5 seconds after which many servers close a connection that lies idle, and many
# clients give one up: a request that is sent at that moment is lost.
IDLE_S = 6.0


def test_a_connection_that_lies_idle_is_for_its_client_to_close(weft):
    place = urlsplit(weft.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=TIMEOUT_S)
    with closing(connection):
        for pause_s in (0.0, IDLE_S):
            time.sleep(pause_s)
            connection.request("GET", "/health")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
