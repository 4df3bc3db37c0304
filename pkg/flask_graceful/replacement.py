"""Workers that are missing, and those that are too many.

Owns what happens between reloads: the replacement of a worker that has died or asks for it, the
pause before one that keeps dying is started again, and the change of their number by signals.

Rules: the first is replaced at once. One that dies young makes the next pause longer, so a broken
worker never keeps the machine busy; one that has lived for a while makes it short again.
"""

from __future__ import annotations

import logging
import os
import typing as t

from .child import quoted
from .loop import Timer
from .settings import MOST_WORKERS
from .staff import Duty, Worker

if t.TYPE_CHECKING:
    from .supervisor import Supervisor

log = logging.getLogger("flask_graceful")

# A worker that lives for so long, in seconds, was no failure of its code.
SOUND_AGE = 30.0
# The pause before a worker is replaced that keeps dying: none at first, then doubled.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


class Replacement:
    """The loop's thread's.

    :param supervisor: lends its team and its loop.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._team = supervisor.team
        self._loop = supervisor.loop
        # How many have died young, one after the other.
        self._failures = 0
        self._pause_timer = Timer(self.replace)
        self._boot_timer = Timer(self._on_timeout)

    def on_death(self, worker: Worker, how: str) -> None:
        """A worker has died that was to serve."""
        pause = self._pause_after(worker)
        when = f"in {pause:g} seconds" if pause else "now"
        lines = [] if worker.is_ready or worker.is_seen else worker.last_lines
        log.error(
            "%d Worker %d %s after %.1f seconds; another one is started %s.%s",
            os.getpid(), worker.pid, how, worker.age, when, quoted(lines),
        )  # fmt: skip
        self._replace_after(pause)

    def on_wish(self, worker: Worker, reason: str) -> None:
        """A worker wants to be replaced, and finishes its requests then."""
        is_over = self._supervisor.is_stopping or worker.duty is not Duty.SERVING
        if is_over or worker.is_to_go:
            return
        worker.is_to_go = True
        log.warning(
            "%d Worker %d is to be replaced: %s; another one is started now.",
            os.getpid(), worker.pid, reason,
        )  # fmt: skip
        # It serves no less for it: no pause, since others wait behind the request that is stuck.
        self._replace_after(0)

    def _pause_after(self, worker: Worker) -> float:
        self._failures = 0 if worker.age > SOUND_AGE else self._failures + 1
        if self._failures < 2:
            return 0.0
        # Beyond this many it is the longest one anyhow.
        doublings = min(self._failures - 2, 10)
        return float(min(FIRST_PAUSE * 2**doublings, LONGEST_PAUSE))

    def _replace_after(self, pause: float) -> None:
        self._loop.cancel(self._pause_timer)
        if pause:
            self._loop.set(self._pause_timer, pause)
        else:
            self.replace()

    def replace(self) -> None:
        """Start the workers that are missing."""
        if self._supervisor.is_stopping or self._supervisor.reload.is_under_way:
            return
        there = self._team.on(Duty.BOOTING, Duty.READY, Duty.SERVING)
        missing = self._team.count - len([one for one in there if not one.is_to_go])
        for _ in range(missing):
            try:
                self._supervisor.welcome(self._team.start(self._team.generation))
            except OSError as error:
                log.error("%d Can't start a worker: %s.", os.getpid(), error)
                self._loop.set(self._pause_timer, LONGEST_PAUSE)
                return
            self._loop.set(self._boot_timer, self._team.settings["boot_timeout"])

    def on_forlorn(self, worker: Worker) -> None:
        """Those are gone that have taken over from this worker: others do, or it serves again."""
        serving = self._team.on(Duty.SERVING)
        if self._supervisor.is_stopping or worker.duty is not Duty.DRAINING:
            return
        if serving and (worker.is_to_go or len(serving) >= self._team.count):
            self._team.hand_on([worker], serving)
            return
        worker.duty = Duty.SERVING
        self._loop.cancel(worker.end_timer)
        worker.say({"resume": True})
        log.error("%d Worker %d, which was to go, serves again.", os.getpid(), worker.pid)

    def on_ready(self, worker: Worker) -> None:
        """A worker that was missing can serve; one that is to go makes room for it."""
        serving = self._team.on(Duty.SERVING)
        if len([one for one in serving if not one.is_to_go]) >= self._team.count:
            log.info("%d Worker %d is not needed any more.", os.getpid(), worker.pid)
            worker.duty = Duty.DRAINING
            worker.limit(self._loop)
            worker.say({"stop": None})
            return
        # It alone takes over, so that it has a share like that of the others.
        self._team.hand_on([one for one in serving if one.is_to_go][:1], [worker])
        log.info("%d Worker %d serves.", os.getpid(), worker.pid)
        if not self._team.on(Duty.BOOTING):
            self._loop.cancel(self._boot_timer)

    def resize(self, change: int) -> None:
        """One worker more, or fewer, until the next reload."""
        count = self._team.count + change
        if not 1 <= count <= MOST_WORKERS:
            log.info("%d Workers: %d, and that is the limit.", os.getpid(), self._team.count)
            return
        if self._supervisor.is_stopping or self._supervisor.reload.is_under_way:
            log.info("%d Not now: a reload or a stop is under way.", os.getpid())
            return
        self._team.count = count
        log.info("%d Workers: %d", os.getpid(), count)
        serving = [one for one in self._team.on(Duty.SERVING) if not one.is_to_go]
        if len(serving) > count:
            self._team.hand_on(serving[count:], serving[:count])
        self.replace()

    def _on_timeout(self) -> None:
        for worker in self._team.on(Duty.BOOTING):
            log.error(
                "%d Worker %d was not ready after %g seconds; killing it.",
                os.getpid(), worker.pid, self._team.settings["boot_timeout"],
            )  # fmt: skip
            worker.kill()
