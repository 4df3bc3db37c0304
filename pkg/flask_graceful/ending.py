"""The end of a service with workers.

Owns the order of a stop: who may refuse it, the doors, the workers, and what is done with those
that do not come to an end.

Rules: no door is closed while clients stand in it. The supervisor ends with its last worker.
"""

from __future__ import annotations

import logging
import os
import typing as t
from functools import partial

from .consent import Consent
from .loop import Tell, Timer, to_nobody
from .reload import give_up
from .staff import KILL_TIME, Duty
from .team import shut

if t.TYPE_CHECKING:
    from .supervisor import Supervisor

log = logging.getLogger("flask_graceful")

# How often a stop says how far it has come.
REPORT_TIME = 5.0


class Ending:
    """The loop's thread's.

    :param supervisor: lends its team, its loop and its notifier.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._team = supervisor.team
        self._loop = supervisor.loop
        self._notifier = supervisor.notifier
        self.consent = Consent(self._team, self._loop, "stop")
        # Has it begun?
        self.is_begun = False
        # Were the workers told so, and told to hurry?
        self._is_told = self._is_hurried = False
        # Who asks for it, and may be refused.
        self._stoppers: list[Tell] = []
        # Seconds that requests get, instead of `hammer_time`.
        self._time: float | None = None
        self._delay_timer = Timer(self._shut_down)
        self._kill_timer = Timer(self._kill)
        self._report_timer = Timer(self._report)

    def stop(
        self,
        timeout: float | None = None,
        refused: Tell = to_nobody,
        is_agreed: bool = False,
    ) -> None:
        """Stop after the requests in flight, unless a hook refuses; a further call skips what is
        waited for.

        :param timeout: seconds that they get, instead of `hammer_time`; 0: any time.
        :param refused: takes the reason when a hook has refused.
        :param is_agreed: the hooks have been asked.
        """
        if self._is_told:
            self._hammer()
        elif self.is_begun:
            self._shut_down()
        elif is_agreed:
            self._on_consent(timeout, "")
        else:
            self._stoppers.append(refused)
            if not self.consent.is_awaited:
                self.consent.ask(partial(self._on_consent, timeout))

    def _on_consent(self, timeout: float | None, reason: str | None) -> None:
        stoppers, self._stoppers = self._stoppers, []
        if reason:
            log.info("%d Not stopped: %s.", os.getpid(), reason)
            for refused in stoppers:
                refused(reason)
            self._supervisor.reload.go_on()
            return
        self._time = timeout
        self._begin()
        delay = self._team.settings["shutdown_delay"]
        if delay:
            log.info("%d Serving on for %g seconds.", os.getpid(), delay)
            for duty in (Duty.SERVING, Duty.DRAINING):
                self._team.tell(duty, {"delay": True})
            self._loop.set(self._delay_timer, delay)
        else:
            self._shut_down()

    def limit(self, timeout: float) -> None:
        """Requests in flight get so many seconds from now on; 0: any time."""
        self._time = timeout
        if self._is_told and not self._is_hurried:
            self._team.tell(Duty.DRAINING, {"limit": timeout})
            self._loop.cancel(self._kill_timer)
            self._loop.set(self._kill_timer, timeout and timeout + KILL_TIME)

    def stop_at_once(self) -> None:
        """Stop, and cut what requests are in flight."""
        self._begin()
        if not self._is_told:
            self._shut_down()
        self._hammer()

    def _begin(self) -> None:
        if self.is_begun:
            return
        self.is_begun = True
        self.consent.forget()
        self._notifier.stopping("Stopping")
        self._supervisor.reload.give_up()
        give_up(self._team.on(Duty.BOOTING, Duty.READY))
        self._report()

    def _shut_down(self) -> None:
        self._is_told = True
        self._loop.cancel(self._delay_timer)
        shut(self._team.listeners)
        for listener in self._team.listeners:
            log.info("%d %s Listener closed.", os.getpid(), listener.address)
        log.info("%d Waiting for workers to finish...", os.getpid())
        for worker in self._team.on(Duty.SERVING, Duty.DRAINING):
            worker.duty = Duty.DRAINING
            worker.say({"stop": self._time})
            self._loop.cancel(worker.end_timer)
        # Theirs are closed when the queues are empty; then clients are refused, and try elsewhere.
        self._team.close()
        # They have the same limit; this one is for those that do not keep it.
        limit = self._team.settings["hammer_time"] if self._time is None else self._time
        self._loop.set(self._kill_timer, limit and limit + KILL_TIME)

    def _hammer(self) -> None:
        if self._is_hurried:
            # Who hangs is not to gain time by it.
            return
        self._is_hurried = True
        log.warning("%d [STOP - Hammer Time] Forcefully shutting down workers", os.getpid())
        self._team.tell(Duty.DRAINING, {"hammer": True})
        self._loop.cancel(self._kill_timer)
        self._loop.set(self._kill_timer, KILL_TIME)

    def _kill(self) -> None:
        for worker in self._team.workers:
            worker.end_by_force()

    def _report(self) -> None:
        """Say that a stop takes its time."""
        count = len(self._team.workers)
        workers = "worker" if count == 1 else "workers"
        self._notifier.extend(3 * REPORT_TIME, f"Waiting for {count} {workers} to finish")
        self._loop.set(self._report_timer, REPORT_TIME)
