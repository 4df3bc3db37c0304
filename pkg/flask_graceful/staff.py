"""A worker process, as its supervisor sees it.

Owns one worker's state, from its start to its end, and what is said over its channel. It outlives
the supervisor's own program: all of it goes into a record and comes back from one.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import socket
import time
import typing as t

from . import shares
from .channel import Channel
from .child import Child
from .loop import Timer

if t.TYPE_CHECKING:
    from .command import Command
    from .loop import Loop

log = logging.getLogger("flask_graceful")

# How long after the hammer a worker may take to end, in seconds.
KILL_TIME = 5.0


class Duty(enum.Enum):
    """What a worker does."""

    # Starts, and does not accept yet.
    BOOTING = "booting"
    # Could accept, and waits for the others of its generation.
    READY = "ready"
    SERVING = "serving"
    # Finishes its requests.
    DRAINING = "draining"


class Asking:
    """A worker that has asked for a reload, and waits for its end.

    :param number: the question's, among those of this worker.
    """

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.number = number

    def result(self, data: dict[str, t.Any]) -> None:
        """It knows, since it has given way."""

    def error(self, reason: str, lines: t.Sequence[str] = ()) -> None:
        self.worker.say({"refused": reason, "lines": list(lines), "number": self.number})


class Worker(Child):
    """One worker.

    :param generation: the number of the code that it runs, counted by reloads.
    :param memory: where the workers tell each other how many connections they have.
    :param slot: where this one's number stands.
    """

    what = "Worker"

    def __init__(self, command: Command, generation: int, memory: int, slot: int) -> None:
        self.generation = generation
        self.slot = slot
        self.started = time.monotonic()
        self.duty = Duty.BOOTING
        # The addresses that it serves, and whether their connections are plain.
        self.listening: dict[str, bool] = {}
        # What its code wants of the service.
        self.wishes: dict[str, t.Any] = {}
        # Is another one to take its place?
        self.is_to_go = False
        # Has it been killed because nobody needs it any more?
        self.is_given_up = False
        # Records that the supervisor has not seen to.
        self._said: list[dict[str, t.Any]] = []
        # Until when it may live on that was to end, or has closed its channel.
        self.end_timer = Timer(self.end_by_force)
        # What it printed last before it failed to boot.
        self.last_lines: list[str] = []
        data = {
            "worker": {"generation": generation, "slot": slot, "begun": time.time()},
            "listeners": [],
            "files": [shares.NAME],
            "signals": True,
        }
        super().__init__(command, data, [memory])
        # The ends of all children are learnt at once.
        self.abandon()

    def note(self, data: dict[str, t.Any]) -> None:
        if "wishes" in data:
            self.wishes = data["wishes"]
        elif "ready" in data:
            self.is_ready = True
            if self.duty is Duty.BOOTING:
                self.duty = Duty.READY
            self.listening = data["ready"]
        self._said.append(data)

    def take_said(self) -> list[dict[str, t.Any]]:
        """What it has said since the last call."""
        said, self._said = self._said, []
        return said

    def end_by_force(self) -> None:
        """It has had its time."""
        log.warning("%d Worker %d does not end; killing it.", os.getpid(), self.pid)
        self.kill()

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It has ended, which is noticed elsewhere.
            pass

    def limit(self, loop: Loop) -> None:
        """It was told to finish, and cuts what it has when its time is over; unless it hangs."""
        hammer_time = self.wishes["settings"]["hammer_time"]
        loop.set(self.end_timer, hammer_time and hammer_time + KILL_TIME)

    def end_boot(self) -> None:
        """It can serve, or never will."""
        if self.is_booting:
            # Half a traceback of one that was killed would lead astray.
            self.last_lines = self.close_output(is_shown=not self.is_given_up)

    def give_up(self) -> None:
        """Kill it before it serves."""
        self.duty = Duty.DRAINING
        self.is_given_up = True
        self.kill()

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started

    # Over the supervisor's own restart.

    def record(self) -> dict[str, t.Any]:
        """Everything that is to be known about it; its boot is over."""
        return {
            "pid": self.pid,
            "fd": self.channel.fileno(),
            "unread": self.channel.unread(),
            "generation": self.generation,
            "slot": self.slot,
            "started": self.started,
            "duty": self.duty.value,
            "wishes": self.wishes,
            "listening": self.listening,
            "is_to_go": self.is_to_go,
            "ends": self.end_timer.deadline,
            "is_given_up": self.is_given_up,
        }

    @classmethod
    def restored(cls, record: dict[str, t.Any]) -> Worker:
        """The worker that such a record tells of."""
        worker = cls.__new__(cls)
        worker.pid = record["pid"]
        sock = socket.socket(fileno=record["fd"])
        sock.set_inheritable(False)
        worker.channel = Channel(sock, record["unread"])
        worker.generation = record["generation"]
        worker.slot = record["slot"]
        worker.started = record["started"]
        worker.duty = Duty(record["duty"])
        worker.wishes = record["wishes"]
        worker.listening = record["listening"]
        worker.is_to_go = record["is_to_go"]
        worker.is_given_up = record["is_given_up"]
        worker.is_ready = True
        worker.last_lines = []
        worker._said = []
        worker.end_timer = Timer(worker.end_by_force)
        worker.end_timer.deadline = record["ends"]
        worker.forget_boot()
        return worker
