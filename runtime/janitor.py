"""Cleans up after a launcher that could not: ends what is left of its processes, removes its files.

Runs beside the launcher, which writes ``+pid`` for each process that it starts and ``-pid`` for
each that it has seen the end of. The end of that pipe is the end of the launcher, however it came.
Standard library only, and nothing of weft: this must work when nothing else does.
"""

import os
import select
import shutil
import signal
import sys

# SIGKILL is certain; what takes longer sits in the kernel, and waiting would not help.
DEATH_WAIT_S = 5


def main() -> None:
    """Read the launcher's pipe (first argument) to its end, then clean up the run directory."""
    pipe_fd, run_dir = int(sys.argv[1]), sys.argv[2]
    # Ctrl-C and a service manager's TERM reach everyone; this process ends with its launcher only.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    living: dict[int, int] = {}  # pid -> pidfd, which names that very process even if pids wrap
    with open(pipe_fd) as pipe:
        for line in pipe:
            pid = int(line[1:])
            if line[0] == "+":
                try:
                    living[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
            elif pid in living:
                os.close(living.pop(pid))
    for pid in living:
        # Each process leads a group of its own, with whatever its libraries have started.
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pidfd in living.values():
        select.select([pidfd], [], [], DEATH_WAIT_S)
    shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
