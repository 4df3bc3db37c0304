"""What a process that serves alone does for those who ask over its control socket.

Owns the meaning of the commands there, and those who wait for a restart.

Strategy: a restart may be asked for while one is under way; the process that serves then carries
it out. So whoever waits for that one goes there too, with the word to restart, and is answered by
the process that knows. A process that gives way has no door any more, but ends its answers.

Rules: everybody who waits is answered once, and before the process ends.
"""

from __future__ import annotations

import logging
import os
import time
import typing as t

from .census import census, running, stranger
from .control import Control
from .history import History
from .inquiry import Inquiries
from .loop import Reason

if t.TYPE_CHECKING:
    from .asker import Answer
    from .channel import Record
    from .inheritance import Inheritance
    from .inquiry import Answers
    from .loop import Loop, Tell
    from .predecessor import Predecessor
    from .restart import GracefulServer
    from .sole import SoleLife
    from .succession import Succession


log = logging.getLogger("flask_graceful")


class Waiting:
    """Those who wait for the end of one restart: a `Tell`."""

    def __init__(self, desk: Desk, answers: list[Answer]) -> None:
        self._desk = desk
        self.answers = answers

    def __call__(self, reason: str) -> None:
        for answer in self.answers:
            if reason:
                lines = reason.lines if isinstance(reason, Reason) else ()
                answer.error(reason, lines)
            else:
                answer.result(self._desk.change())


class Desk:
    """The loop's thread's.

    :param life: what is asked about, and carries out the rest.
    """

    # Of this process, counted by restarts.
    generation = 1

    def __init__(
        self,
        life: SoleLife,
        loop: Loop,
        servers: t.Sequence[GracefulServer],
        succession: Succession,
        predecessor: Predecessor,
    ) -> None:
        self._life = life
        self._servers = servers
        self._succession = succession
        self._predecessor = predecessor
        self._control = Control(loop, self)
        self._inquiries = Inquiries(loop)
        predecessor.on_answer = self._inquiries.on_answer
        self.history = History()
        # Who waits for the end of the service.
        self._stopping: list[Answer] = []

    # The door.

    def open(self, inherited: Inheritance) -> None:
        """Let those in who ask.

        :raises ControlError: the socket can't be where the setting says.
        """
        self.history = History(inherited.restarts)
        self.generation = inherited.generation
        # An old process has had the place until now.
        takes_over = inherited.parent is not None
        self._control.open(self._life.settings.control_socket, takes_over)

    def open_again(self) -> None:
        """A process has died that was to be asked."""
        self._control.reopen(self._life.settings.control_socket, takes_over=True)

    def shut(self) -> None:
        """Another process is asked from now on."""
        self._control.shut()

    def close(self) -> None:
        """The process ends."""
        self._control.close(self._stopping)

    # The commands.

    def reload(self, answer: Answer) -> None:
        self._restart([answer])

    def _restart(self, answers: list[Answer]) -> None:
        log.info("%d Told to restart. forking.", os.getpid())
        self._succession.restart(Waiting(self, answers), can_wait=True)

    def status(self, answer: Answer) -> None:
        self.inquire({"census": True}, lambda found: answer.result(self._status(found)))

    def _status(self, processes: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        own = processes[0]
        return {
            "pid": own["pid"],
            "generation": self.generation,
            "state": own["state"],
            "addresses": [place for one in self._servers for place in one.places],
            "workers": [*self._booting(), *processes],
            "restarts": self.history.rows(),
        }

    def _census(self) -> dict[str, t.Any]:
        about = {"generation": self.generation, "state": self._life.state.name.lower()}
        return {**census(self._servers, self._life.moved), **about}

    def _booting(self) -> list[dict[str, t.Any]]:
        successor = self._succession.successor
        if successor is None or successor.is_ready:
            return []
        about = stranger(successor.pid, self.generation + 1, "booting")
        return [{**about, "age": round(time.monotonic() - successor.started, 3)}]

    def requests(self, stacks: bool, answer: Answer) -> None:
        def tell(found: list[dict[str, t.Any]]) -> None:
            found.sort(key=lambda one: -t.cast("float", one["age"]))
            answer.result({"requests": found})

        self.inquire({"requests": stacks}, tell)

    def inquire(
        self, what: dict[str, t.Any], then: t.Callable[[list[dict[str, t.Any]]], object]
    ) -> None:
        """Find out about this process and those before it.

        :param then: takes what is known, this process first.
        """
        is_census = "census" in what
        own = [self._census()] if is_census else running(self._servers, what["requests"])
        old = self._predecessor

        def tell(answers: Answers) -> None:
            unknown = [stranger(old.pid, self.generation - 1, "relieved")]
            there = unknown if is_census and old.is_there else []
            then([*own, *answers.get(old.pid, there)])

        self._inquiries.ask([old] if old.is_there else [], what, tell)

    def forget_old_process(self) -> None:
        """It has ended, and all before it."""
        self.history.move(self.generation - 1, self._life.moved["in"])
        self.history.end(self.generation)
        self._inquiries.on_death(self._predecessor)

    def stop(self, timeout: float | None, answer: Answer) -> None:
        life = self._life
        answer.news = self._what_is_left
        self._stopping = [one for one in self._stopping if not one.is_over]
        self._stopping.append(answer)
        if life.is_stopping:
            # Who comes later waits too, and nothing is cut for that.
            if timeout is not None:
                life.limit(timeout)
        else:
            life.stop_as_told(timeout, answer.error)

    def _what_is_left(self) -> dict[str, t.Any]:
        own = self._census()
        return {**own, "connections": sum(own["connections"].values())}

    # A restart that another process carries out.

    def change(self) -> dict[str, t.Any]:
        """What has become of the service."""
        successor = self._succession.successor
        assert successor is not None
        return {"generation": self.generation + 1, "old": [os.getpid()], "new": [successor.pid]}

    def part_with(self, tells: t.Iterable[Tell], reason: str) -> tuple[list[str], list[int]]:
        """Have those who wait go to another process: a record, and descriptors.

        :param reason: what the others are told, who can't.
        """
        answers: list[Answer] = []
        for tell in tells:
            if isinstance(tell, Waiting):
                answers += tell.answers
            else:
                tell(reason)
        return self._control.part_with(answers)

    def adopt(self, record: Record) -> None:
        """Carry out the restart that another process was asked for."""
        outputs = record.data.get("waiting", [])
        pairs = zip(record.fds, outputs, strict=False)
        self._restart([self._control.adopt(fd, output) for fd, output in pairs])
