"""The workers of a supervisor, and the listeners that they serve.

Owns both: who was started, what each does, which socket belongs to which address, and how the
connections of one worker find their way to others.

Strategy: a worker says which addresses its code wants, and gets the sockets; one that is new is
bound then. When workers give way, each of them gets a socket pair to each of those that take over,
and connections travel there without the supervisor.

Rules: the listeners are the supervisor's alone. No worker shuts one or removes its file.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import typing as t

from . import shares
from .command import Command
from .listeners import Listener, ListenError, bind_missing, parse_address
from .pidfile import PidFile, PidFileError
from .sockfile import SocketFile
from .staff import Duty, Worker

if t.TYPE_CHECKING:
    from .loop import Loop

log = logging.getLogger("flask_graceful")

# How long clients may take who have begun to come in when nobody else is let in, in seconds.
HANDSHAKE_TIME = 0.5
QUIET_TIME = 0.005


class Team:
    """:param state: what `record` has said, or what the process has made up that is to become a
    supervisor.
    :param loop: has the timers of those that are to end.
    """

    def __init__(self, state: dict[str, t.Any], loop: Loop) -> None:
        self._loop = loop
        self.command = Command(*state["command"])
        # Counted by reloads.
        self.generation: int = state["generation"]
        # How many workers there are to be: as the code has it, and as signals have changed it.
        self.count: int = state["count"]
        # Those of the code that serves.
        self.settings: dict[str, t.Any] = state["settings"]
        self.listeners = [_listener_at(*one) for one in state["listeners"]]
        # Where workers tell each other how many connections they have.
        self.memory: int = shares.create() if state["memory"] is None else state["memory"]
        os.set_inheritable(self.memory, False)
        self.workers = [Worker.restored(one) for one in state["workers"]]
        for worker in self.workers:
            loop.resume(worker.end_timer)

    def start(self, generation: int) -> Worker:
        """Start one worker.

        :raises OSError: it can't be started.
        """
        taken = {worker.slot for worker in self.workers}
        free = [slot for slot in range(shares.SLOTS) if slot not in taken]
        if not free:
            raise OSError(None, f"{shares.SLOTS} workers have not ended yet")
        worker = Worker(self.command, generation, self.memory, free[0])
        self.workers.append(worker)
        return worker

    def on(self, *duties: Duty) -> list[Worker]:
        """The workers with one of these duties, in the order of their start."""
        return [worker for worker in self.workers if worker.duty in duties]

    def tell(self, duty: Duty, record: dict[str, t.Any]) -> None:
        """Say something to all with this duty."""
        for worker in self.on(duty):
            worker.say(record)

    def find(self, pid: int) -> Worker | None:
        return next((worker for worker in self.workers if worker.pid == pid), None)

    def remove(self, worker: Worker) -> None:
        """It has ended."""
        self.workers.remove(worker)
        shares.clear(self.memory, worker.slot)
        worker.channel.close()

    def provide(self, worker: Worker) -> None:
        """Give a worker the listeners that it wishes for; or tell it why it can't serve."""
        settings = worker.wishes["settings"]
        try:
            if worker.generation not in {one.generation for one in self.on(Duty.SERVING)}:
                # It is written when they serve, and to be refused before.
                PidFile(settings["pid_file"]).check()
            addresses = map(parse_address, worker.wishes["addresses"])
            keep_alive = settings["tcp_keep_alive"]
            given, fresh = bind_missing(dict.fromkeys(addresses, keep_alive), self.listeners)
        except (ListenError, PidFileError, ValueError) as error:
            kind = "pid_file_error" if isinstance(error, PidFileError) else "error"
            worker.say({kind: str(error)})
            return
        self.listeners += fresh
        for listener in fresh:
            log.info("%d Listening on %s", os.getpid(), listener.place)
        names = [listener.inherited_as for listener in given]
        worker.say({"given": names}, [listener.fileno() for listener in given])

    def relieve(self, old: t.Sequence[Worker], new: t.Sequence[Worker]) -> None:
        """Have workers hand their connections to others, and go."""
        listening = new[0].listening
        for worker in old:
            theirs: list[int] = []
            for heir in new:
                one, other = socket.socketpair()
                heir.say({"predecessor": worker.pid}, [one.detach()], given=True)
                theirs.append(other.detach())
            if worker.duty is not Duty.DRAINING:
                worker.duty = Duty.DRAINING
                worker.limit(self._loop)
            worker.say({"heirs": listening}, theirs, given=True)

    def hand_on(self, old: t.Sequence[Worker], new: t.Sequence[Worker]) -> None:
        """Have workers that are ready accept, and take over from others."""
        shut(self.unused_by([*new, *(one for one in self.on(Duty.SERVING) if one not in old)]))
        # First: who has taken nobody's place is told so when it begins.
        self.relieve(old, new)
        self.open(new)
        self.close_unused()

    def open(self, workers: t.Sequence[Worker]) -> None:
        """Have those that are ready accept."""
        for worker in workers:
            if worker.duty is not Duty.READY:
                continue
            worker.duty = Duty.SERVING
            worker.say({"go": True})

    def unused_by(self, workers: t.Sequence[Worker]) -> list[Listener]:
        """The listeners that none of these has any use for. One that systemd has passed may be
        asked for later, and nobody else could have it."""
        used = {name for worker in workers for name in worker.listening}
        return [one for one in self.listeners if one.is_ours and one.inherited_as not in used]

    def close_unused(self) -> None:
        """Close the listeners that no worker serves; those that give one up empty its queue."""
        for listener in self.unused_by(self.on(Duty.SERVING)):
            log.info("%d %s Listener closed.", os.getpid(), listener.address)
            self.listeners.remove(listener)
            listener.close()

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    # Over the supervisor's own restart.

    def record(self) -> dict[str, t.Any]:
        """All of it, when nothing boots."""
        return {
            "command": list(self.command),
            "generation": self.generation,
            "count": self.count,
            "settings": self.settings,
            "listeners": [
                [one.fileno(), one.inherited_as, one.is_ours, one.file] for one in self.listeners
            ],
            "memory": self.memory,
            "workers": [worker.record() for worker in self.workers],
        }

    def fds(self) -> list[int]:
        """The descriptors in the record."""
        channels = [worker.channel.fileno() for worker in self.workers]
        return [*(one.fileno() for one in self.listeners), self.memory, *channels]


def _listener_at(fd: int, name: str, is_ours: bool, file: list[t.Any] | None) -> Listener:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return Listener(sock, name, name, is_ours, SocketFile(*file) if file else None)


def shut(listeners: t.Sequence[Listener]) -> None:
    """Let nobody in any more, and wait for those who have a foot in the door: they are in the
    queues then."""
    tcp = [one for one in listeners if one.network == "tcp" and one.shut()]
    until = time.monotonic() + HANDSHAKE_TIME
    while tcp and time.monotonic() < until:
        time.sleep(QUIET_TIME)
        if not any(one.is_awaited() for one in tcp):
            break
    # Last: a Unix socket that is shut can always be read.
    for one in listeners:
        if one.network == "unix":
            one.shut()
