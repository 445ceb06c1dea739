"""A small pipeline of real actors for tests of the launcher: front -> worker, and a client."""

import os
import signal
import time
from pathlib import Path

import msgspec

from weft.runtime.actor import Send
from weft.runtime.config import ConfigError
from weft.runtime.messages import Cancel, Generate, Inspect, Models, ListModels, Sampled
from weft.runtime.topology import CLIENT, Edge, Process, Topology

BUILD = "tests.system.pipeline:build"

TOPOLOGY = Topology(
    processes=(
        Process("front", "answers clients", BUILD),
        Process("worker", "counts", BUILD, computes=True),
    ),
    edges=(
        Edge(CLIENT, "front", (ListModels, Cancel), (Models,), 8, 8),
        Edge("worker", "front", (Models,), (ListModels,), 8, 8),
    ),
)
