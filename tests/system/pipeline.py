"""A small pipeline for tests of the launcher: client -> front -> workers, beside a door.

``python -m tests.system.pipeline KEY=VALUE ...`` launches it. The configuration's
``served_model_name`` says how it shall misbehave.
"""

import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from weft.runtime import log
from weft.runtime.actor import Send
from weft.runtime.config import Config, ConfigError
from weft.runtime.launch import Launcher
from weft.runtime.messages import ListModels, ModelEntry, Models
from weft.runtime.topology import CLIENT, Edge, Process, Topology

BUILD = "tests.system.pipeline:build"
SLOW_NS = 500_000_000

# A start that takes longer than a process may not get on with it.
LONG_S = 6.0

TABLE = Topology(
    processes=(
        Process("door", "lets the world in", "tests.system.pipeline:serve", is_actor=False),
        Process("front", "passes questions on", BUILD),
        Process("worker", "answers them", BUILD, group="workers"),
    ),
    edges=(
        Edge(CLIENT, "front", (ListModels,), (Models,), 8, 8),
        Edge("worker", "front", (Models,), (ListModels,), 8, 8),
    ),
)


def topology(config):
    if config.served_model_name != "lame":
        return TABLE
    other = Process("other", "is of another group, and has one life", BUILD, group="others")
    return Topology((*TABLE.processes, other), (*TABLE.edges, Edge("other", "front", (), (), 8, 8)))


class Front:
    """Asks the worker what it is asked, and once more what a worker that has died was asked."""

    def __init__(self):
        self.asked = {}  # label -> client
        self.is_draining = False

    def receive(self, source, message, now_ns):
        match message:
            case ListModels(label):
                if self.is_draining:
                    return [Send(source, Models("draining", []))]
                self.asked[label] = source
                return [Send("worker", message)]
            case Models(label):
                return [Send(self.asked.pop(label), message)]

    def advance(self, turn):
        return []

    def lost(self, peer, now_ns):
        if peer == "worker":
            return [Send("worker", ListModels(label)) for label in self.asked]
        self.asked = {label: client for label, client in self.asked.items() if client != peer}
        return []

    def drain(self):
        self.is_draining = True

    @property
    def is_idle(self):
        return not self.asked

    def check(self):
        pass


class Worker:
    """Does what a label says, but only in its first life: "die 2" in the first two."""

    def __init__(self, epoch):
        self.epoch = epoch
        self.held = []  # (due_ns, message)

    def receive(self, source, message, now_ns):
        label, _, lives = message.label.partition(" ")
        if self.epoch <= int(lives or 1):
            assert label != "die", "asked to die"
            if label == "leave":
                sys.exit(0)
            if label == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if label == "hang":
                time.sleep(3600)
        due_ns = now_ns + (SLOW_NS if label.startswith("slow") else 0)
        self.held.append((due_ns, message))
        return []

    def advance(self, turn):
        due = [message for due_ns, message in self.held if due_ns <= turn.now_ns]
        self.held = [item for item in self.held if item[0] > turn.now_ns]
        entry = ModelEntry("m", "", None, None, None, 0, 1)
        return [Send("front", Models(message.label, [entry])) for message in due]

    def lost(self, peer, now_ns):
        return []

    def drain(self):
        pass

    @property
    def is_idle(self):
        return not self.held

    def check(self):
        pass


def build(role, config, run_dir, report, wakes, epoch):
    behaviour = config.served_model_name
    if role == "front":
        if behaviour == "refused":
            raise ConfigError("model: no such thing; name another")
        return Front()
    if behaviour == "broken" or (behaviour == "once" and epoch > 1):
        raise RuntimeError("a bug in loading")
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "waiting" and epoch > 1:
        while not Path(run_dir, "go").exists():
            time.sleep(0.01)
    if role == "other" and epoch > 1:
        raise RuntimeError("a bug in loading")
    for percent in (0, 50, 100):
        report(percent / 100, "loading weights")
        if behaviour == "long":
            time.sleep(LONG_S / 3)
        if behaviour == "stalled" or (behaviour == "stalled later" and epoch > 1):
            time.sleep(3600)
    return Worker(epoch)


def serve(config, run_dir, on_ready):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    on_ready("http://door")
    time.sleep(3600)


if __name__ == "__main__":
    given = {"model": "m", "port": 0}
    given |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    config = msgspec.convert(given, Config, strict=False)
    log.setup("launcher", config.log_level)
    try:
        sys.exit(Launcher(config, "tests.system.pipeline:topology").run())
    except ConfigError as error:
        sys.exit(f"weft: error: {error}")
