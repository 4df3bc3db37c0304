"""What a supervisor does for those who ask over its control socket.

Owns the meaning of the commands there. What only workers know they are asked for; one that does
not answer in time is listed with what others can see of it.

Rules: everybody who waits is answered once, before the process ends. Who waits for a reload is
answered by the program that it puts in this one's place.
"""

from __future__ import annotations

import logging
import os
import typing as t
from collections import Counter

from .census import stranger
from .control import Control
from .inquiry import Inquiries
from .staff import Duty

if t.TYPE_CHECKING:
    from .asker import Answer
    from .inquiry import Answers
    from .staff import Worker
    from .supervisor import Supervisor

log = logging.getLogger("flask_graceful")


class Office:
    """The loop's thread's.

    :param supervisor: what is asked about, and carries out the rest.
    :param record: what the office of the program before this one says; None: there was none.
    """

    def __init__(self, supervisor: Supervisor, record: dict[str, t.Any] | None) -> None:
        self._supervisor = supervisor
        self._team = supervisor.team
        self._inquiries = Inquiries(supervisor.loop)
        self.on_answer = self._inquiries.on_answer
        self.on_death = self._inquiries.on_death
        self._control = Control(supervisor.loop, self, record)
        self._is_first = record is None
        self.record = self._control.record
        self.fds = self._control.fds
        # Those who wait for the reload that the program before this one has begun.
        self.waiting = self._control.waiting()
        # Who waits for the end of the service, and what it was about to finish last.
        self._stopping: list[Answer] = []
        self._left: dict[str, t.Any] = {}

    def open(self) -> None:
        """Let those in who ask.

        :raises ControlError: the socket of a service that starts can't be where the setting says.
        """
        if self._is_first:
            self._control.open(self._team.settings["control_socket"])
        else:
            self.open_again()

    def open_again(self) -> None:
        """The same when new code serves, which may want it elsewhere."""
        self._control.reopen(self._team.settings["control_socket"])

    def finish(self) -> None:
        """The program ends: those who do not wait for a reload are told what is known by now."""
        self._inquiries.end()

    def close(self) -> None:
        """The process ends."""
        self._control.close(self._stopping)

    # The commands.

    def reload(self, answer: Answer) -> None:
        log.info("%d Told to reload.", os.getpid())
        self._supervisor.reload.ask(answer)

    def status(self, answer: Answer) -> None:
        self._take_census(lambda workers: answer.result(self._status(workers)))

    def _status(self, workers: list[dict[str, t.Any]]) -> dict[str, t.Any]:
        serving = self._team.on(Duty.SERVING)
        state = "running" if serving else "booting"
        return {
            "pid": os.getpid(),
            # What boots may never serve.
            "generation": max((one.generation for one in serving), default=self._team.generation),
            "state": "shutting_down" if self._supervisor.is_stopping else state,
            "addresses": [one.place for one in self._team.listeners],
            "workers": workers,
            "restarts": self._supervisor.history.rows(),
        }

    def requests(self, stacks: bool, answer: Answer) -> None:
        def tell(answers: Answers) -> None:
            running = [one for found in answers.values() for one in found]
            running.sort(key=lambda one: -t.cast("float", one["age"]))
            answer.result({"requests": running})

        self._ask({"requests": stacks}, tell)

    def when_heard(self, workers: t.Sequence[Worker], then: t.Callable[[], object]) -> None:
        """Go on when these have heard all that was said to them, have ended, or do not answer."""
        self._inquiries.ask(workers, {"census": True}, lambda answers: then())

    def stop(self, timeout: float | None, answer: Answer) -> None:
        answer.news = self._what_is_left
        self._stopping = [one for one in self._stopping if not one.is_over]
        self._stopping.append(answer)
        if self._supervisor.is_stopping:
            # Who comes later waits too, and nothing is cut for that.
            if timeout is not None:
                self._supervisor.ending.limit(timeout)
        else:
            log.info("%d Told to stop.", os.getpid())
            self._supervisor.ending.stop(timeout, answer.error)

    def _what_is_left(self) -> dict[str, t.Any]:
        """As it was a moment ago; and have the workers asked how it is now."""
        self._take_census(self._note_what_is_left)
        return self._left

    def _note_what_is_left(self, workers: list[dict[str, t.Any]]) -> None:
        left: Counter[str] = Counter()
        for one in workers:
            left["connections"] += sum((one["connections"] or {}).values())
            left["requests"] += one["requests"] or 0
            left["tracked"] += one["tracked"] or 0
        self._left = dict(left)

    # The workers.

    def _take_census(self, then: t.Callable[[list[dict[str, t.Any]]], object]) -> None:
        workers = list(self._team.workers)

        def tell(answers: Answers) -> None:
            then([self._about(one, answers) for one in workers if one in self._team.workers])

        self._ask({"census": True}, tell)

    def _about(self, worker: Worker, answers: Answers) -> dict[str, t.Any]:
        state = worker.duty.value
        unknown = stranger(worker.pid, worker.generation, state)
        own = {"generation": worker.generation, "state": state, "age": round(worker.age, 3)}
        return {**unknown, **answers.get(worker.pid, {}), **own}

    def _ask(self, what: dict[str, t.Any], then: t.Callable[[Answers], object]) -> None:
        # Who boots is busy with that.
        ready = [worker for worker in self._team.workers if worker.is_ready]
        self._inquiries.ask(ready, what, then)
