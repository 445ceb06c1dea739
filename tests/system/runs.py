"""Starts launchers and looks after what they start."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]

# How long anything may take. Nothing comes near it unless it hangs: a machine may be so busy that a
# process gets a core once in many seconds.
TIMEOUT_S = 150.0
SCHEDULER_HOLDS = (
    "requests", "sequences", "waiting", "rows_running", "pages_sequences", "adapter_pins",
)  # fmt: skip
RUNNER_HOLDS = ("rows", "page_references", "adapter_slots_used")


class Run:
    """A launcher, started as a user would; its runs lie in ``place``."""

    def __init__(self, place, arguments, stderr=subprocess.PIPE):
        self.place = place
        self.popen = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(place), "PYTHONPATH": "."},
        )
        self.run_dir = None

    def serve(self):
        """Wait until it is ready."""
        lines = []
        while not lines or "stop" not in lines[-1]:
            lines.append(self.popen.stdout.readline())
            assert lines[-1], self.popen.stderr.read()
        self.run_dir = Path(re.search(r"ZeroMQ +(\S+)", "".join(lines))[1])
        return "".join(lines)

    def processes(self):
        """Processes of this run that are alive, by what they are."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.run_dir) in arguments:
                is_janitor = arguments[-2] == str(self.run_dir)
                role = (
                    "janitor" if is_janitor else arguments[arguments.index(str(self.run_dir)) - 1]
                )
                found[role] = int(folder.name)
        return found

    def stop(self, number=signal.SIGTERM):
        self.popen.send_signal(number)

    def end(self):
        """Wait for the end; return exit code and what was said on stderr."""
        _, error = self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode, error

    def assert_nothing_is_left(self):
        deadline = time.monotonic() + TIMEOUT_S
        while self.processes() or list(self.place.glob("weft/run-*")):
            assert time.monotonic() < deadline, (self.processes(), list(self.place.rglob("*")))
            time.sleep(0.01)


class Server(Run):
    """The demonstration, served by ``weft serve``; options override the configuration.

    ``lines`` are added to the file, as a user would.
    """

    def __init__(self, place, lines="", **options):
        self.log = place / "log"
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        config = ROOT / "configs/demo.yaml"
        if lines:
            text = config.read_text().replace(" demo/", f" {config.parent}/demo/")
            config = place / "weft.yaml"
            config.write_text(f"{text}\n{lines}\n")
        with self.log.open("w") as log:
            super().__init__(
                place, ["weft", "serve", str(config), "--port=0", "--threads=2", *flags], log
            )
        self.url = None

    def serve(self):
        said = super().serve()
        self.url = re.search(r"HTTP +(\S+)/v1", said)[1]
        return said

    def state(self):
        """What every process holds, after each has checked its invariants."""
        return httpx.get(f"{self.url}/debug/state", timeout=TIMEOUT_S).raise_for_status().json()

    def assert_all_is_back(self):
        """Assert that nothing is held for any request, as soon as the last one has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while held := {name: value for name, value in self.held().items() if value}:
            assert time.monotonic() < deadline, held
            time.sleep(0.05)

    def held(self):
        """Everything that is there only while a request is."""
        sections = self.state()["sections"]
        detokenizer = sections["detokenizer"]
        schedulers = {role: held for role, held in sections.items() if "scheduler" in role}
        idle = ("pages_free", "pages_cached", "pages_adapters_idle", "pages_adapters_held")
        held = {}
        for role, scheduler in schedulers.items():
            held |= {f"{role}'s {name}": scheduler[name] for name in SCHEDULER_HOLDS}
            lost = scheduler["pages"] - sum(scheduler[name] for name in idle)
            held[f"{role}'s pages lost"] = lost
            # What is on its way to a device is pinned in host memory, and nothing else is.
            held[f"{role}'s host pins"] = scheduler["adapters_held"]
        held |= {name: detokenizer[name] for name in ("sequences", "characters_unsent")}
        for role in filter(lambda role: role.startswith("runner"), sections):
            held |= {f"{role}'s {name}": sections[role][name] for name in RUNNER_HOLDS}
        held["encoding"] = sections["tokenizer"]["waiting"]
        held["loading"] = sections["adapters"]["waiting"]
        pins = sum(scheduler["adapters_held"] for scheduler in schedulers.values())
        held["host pins lost"] = max(0, sections["adapters"]["pinned"] - pins)
        return held
