"""All processes of a run: started, heard, buried, and those that compute together started again."""

from __future__ import annotations

import logging
import select
import selectors
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from weft.runtime.child import Child, Died
from weft.runtime.clean_up import Janitor
from weft.runtime.cores import Share
from weft.runtime.progress import ProgressDisplay
from weft.runtime.status import Progress, Ready
from weft.runtime.supervision import Group
from weft.runtime.topology import Topology

_log = logging.getLogger(__name__)


class Processes:
    """The latest life of every role. Must live on the launcher's main thread.

    A death ends the run (``Died``), unless it is one of a group's, while somebody waits for the
    group: then the group lives again.
    """

    def __init__(
        self,
        topology: Topology,
        run_dir: Path,
        shares: Mapping[str, Share],
        *,
        janitor: Janitor,
        watchdog_timeout_s: float,
        loading_timeout_s: float,
    ) -> None:
        """``shares`` are of those that compute; ``janitor`` hears who must not be left behind.

        The timeouts say how long a group may not get on: when it is up, and before.
        """
        self.restarts = False  # until everybody is there, any death ends the run
        self._topology = topology
        self._run_dir = run_dir
        self._shares = shares
        self._janitor = janitor
        self._children: dict[str, Child] = {}  # in order of start
        self._groups = [
            Group(roles, watchdog_timeout_s=watchdog_timeout_s, loading_timeout_s=loading_timeout_s)
            for roles in topology.groups.values()
        ]
        self._group_of = {role: group for group in self._groups for role in group.roles}
        self._selector = selectors.DefaultSelector()
        self._selector.register(janitor.pid_fd, selectors.EVENT_READ, janitor)
        self._progress = ProgressDisplay(sys.stderr)

    @property
    def are_ready(self) -> bool:
        """Whether all that were started are."""
        return all(child.ready for child in self._children.values())

    @property
    def urls(self) -> Iterable[str]:
        """Where the outside world can turn to."""
        ready = [child.ready for child in self._children.values()]
        return [each.url for each in ready if each and each.url]

    def is_alive(self, role: str) -> bool:
        """Whether a process has not ended."""
        return self._children[role].is_alive

    def start(self, roles: Iterable[str]) -> None:
        """Begin the first life of each role."""
        for role in roles:
            group = self._group_of.get(role)
            if group is None:
                self._start(role, 1)
            elif group.epoch == 0:
                self._start_group(group)

    def attend(self, wakes: int, timeout_s: float | None) -> bool:
        """Wait for something to happen, and do what it asks for; has ``wakes`` become readable?

        Raises ``Died``.
        """
        if wakes not in self._selector.get_map():
            self._selector.register(wakes, selectors.EVENT_READ)
        due_in_s = [due - time.monotonic() for due in self._dues()]
        if timeout_s is not None:
            due_in_s.append(timeout_s)
        is_woken = False
        for key, _ in self._selector.select(max(0.0, min(due_in_s)) if due_in_s else None):
            child: Child | Janitor | None = key.data
            if child is None:
                is_woken = True
            elif isinstance(child, Janitor):
                self._revive_janitor()
            elif not child.is_alive:
                pass  # an event before this one has told of its end, and its files are closed
            elif key.fd == child.status_fd:
                self._hear(child)
            else:
                self._bury(child)
        self._do_what_is_due(time.monotonic())
        return is_woken

    def stop(self, role: str) -> None:
        """Ask a process to end once its work is done; one of a group that is not up has none."""
        group = self._group_of.get(role)
        if group is None or group.is_up:
            self._children[role].stop()
        else:
            group.give_up()

    def leave(self, roles: Iterable[str], timeout_s: float) -> None:
        """End everyone at once but ``roles``, who see that and may take so long to end."""
        leaving = [self._children[role] for role in roles if role in self._children]
        leaving = [child for child in leaving if child.is_alive]
        for child in self._children.values():
            if child not in leaving:
                child.kill()
        deadline = time.monotonic() + timeout_s
        for child in leaving:
            child.stop()
            select.select([child.pid_fd], [], [], max(0.0, deadline - time.monotonic()))

    def kill_all(self) -> None:
        """End everyone at once, and release everything."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            if child.is_alive:
                child.reap()
                child.close()
        self._selector.close()

    def _start(self, role: str, epoch: int) -> Child:
        child = Child(role, epoch, self._run_dir, self._shares.get(role, Share(1, None)))
        self._children[role] = child
        self._janitor.note_start(child.pid)
        self._selector.register(child.pid_fd, selectors.EVENT_READ, child)
        self._selector.register(child.status_fd, selectors.EVENT_READ, child)
        return child

    def _revive_janitor(self) -> None:
        self._selector.unregister(self._janitor.pid_fd)
        self._janitor.restart()
        self._selector.register(self._janitor.pid_fd, selectors.EVENT_READ, self._janitor)

    def _start_group(self, group: Group) -> None:
        group.epoch += 1
        members = [self._start(role, group.epoch) for role in group.roles]
        group.begin(members, time.monotonic())

    def _hear(self, child: Child) -> None:
        said = child.hear()
        if said is None:
            self._selector.unregister(child.status_fd)
            return
        for status in said:
            match status:
                case Progress():
                    self._progress.show(child.role, status)
                case Ready():
                    self._progress.done(child.role)
                    self._note_ready(child)

    def _note_ready(self, child: Child) -> None:
        group = self._group_of.get(child.role)
        away_s = group.heard(time.monotonic()) if group else None
        if group is not None and away_s is not None and group.epoch > 1:
            _log.warning("%s: back after %.1f s", ", ".join(group.roles), away_s)

    def _bury(self, child: Child) -> None:
        """Reap a process that has ended, and see what follows."""
        child.reap()
        self._progress.done(child.role)
        self._selector.unregister(child.pid_fd)
        while child.status_fd in self._selector.get_map():
            self._hear(child)  # its last words
        child.close()
        self._janitor.note_end(child.pid)
        group = self._group_of.get(child.role)
        if not child.ended_well:
            if group is None or not self._is_waited_for(group):
                raise child.died()
            self._end(group, child.died())
        if group is not None and group.is_ending and group.is_gone:
            self._plan(group)

    def _plan(self, group: Group) -> None:
        """Say when a group that has ended lives again; without the last one there is no run."""
        try:
            delay_s = group.ended(time.monotonic())
        except Died as death:
            if all(each.is_given_up for each in self._groups):
                raise
            _log.error("%s; the run goes on without it", death)
            return
        if delay_s:
            _log.warning("starting again in %.1f s", delay_s)

    def _end(self, group: Group, cause: Died) -> None:
        if group.end(cause):
            _log.error("%s; starting %s again", cause, " and ".join(group.roles))

    def _is_waited_for(self, group: Group) -> bool:
        """Whether there is anybody to send steps."""
        return self.restarts and all(
            self.is_alive(edge.binds)
            for role in group.roles
            for edge in self._topology.connected_by(role)
        )

    def _dues(self) -> list[float]:
        times = (at for group in self._groups for at in (group.due_at, group.looks_at))
        return [at for at in times if at is not None]

    def _do_what_is_due(self, now: float) -> None:
        for group in self._groups:
            if group.due_at is not None and now >= group.due_at:
                if self._is_waited_for(group):
                    self._start_group(group)
                else:
                    group.give_up()
        for group in self._groups:
            cause = group.stuck(now)
            if cause is not None:
                if not self.restarts:
                    raise cause
                self._end(group, cause)
