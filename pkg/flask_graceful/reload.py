"""A reload: everything is replaced by what the code and the configuration are now.

Owns the way from the question to the answer: the hooks that may refuse, the supervisor's own
program, the workers, and those who wait for the outcome.

Strategy: the supervisor's program comes first, by execve(2) in place, when a trial has shown that
it can be run. The new program goes on here with the workers: the next generation boots beside the
present one, and when all of it is ready, the present one hands its connections over.

Rules: one at a time; one that is asked for meanwhile follows, and who asked for it is answered when
that one has ended. Whatever fails before the new workers accept changes nothing. Success is told
when no old worker accepts any more: who hears of it, and asks, is answered by the new code.
"""

from __future__ import annotations

import logging
import os
import typing as t
from functools import partial

from . import reexec
from .child import how_it_ended, quoted
from .consent import Consent
from .loop import Timer
from .staff import Duty, Worker
from .turnover import Turnover

if t.TYPE_CHECKING:
    from .supervisor import Supervisor

log = logging.getLogger("flask_graceful")


class Outcome(t.Protocol):
    """Where the end of a reload is told."""

    def result(self, data: dict[str, t.Any]) -> object:
        """It has succeeded: the pids of the workers before and now."""

    def error(self, reason: str, lines: t.Sequence[str] = ()) -> object:
        """It has failed, and what the program has said last."""


class Reload:
    """The loop's thread's.

    :param supervisor: lends its team, its loop and its notifier.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._team = supervisor.team
        self._loop = supervisor.loop
        # Those who wait for the one that is under way, and for the one after it.
        self.waiting: list[Outcome] = []
        self.waiting_for_next: list[Outcome] = []
        self._is_wanted = False
        self.consent = Consent(self._team, self._loop, "restart")
        self._trial: reexec.Trial | None = None
        # Has it shown that the program can be run?
        self._is_tried = False
        self._turnover: Turnover | None = None
        # Is only to be heard that the old workers have given way?
        self._is_settling = False
        self._old: list[int] = []
        self._timer = Timer(self._on_timeout)

    @property
    def is_under_way(self) -> bool:
        is_begun = bool(self.consent.is_awaited or self._trial or self._is_tried)
        return is_begun or self._has_new_code

    @property
    def _has_new_code(self) -> bool:
        return self._turnover is not None or self._is_settling

    @property
    def turnover(self) -> Turnover | None:
        """The workers' part of it, while it lasts."""
        return self._turnover

    def ask(self, outcome: Outcome | None = None) -> None:
        """Reload, or do it again after the one that is under way."""
        waiting = [] if outcome is None else [outcome]
        if self._supervisor.is_stopping:
            log.info("%d Not reloaded: the service is shutting down.", os.getpid())
            for one in waiting:
                one.error("the service is shutting down")
        elif self.is_under_way and not self._has_new_code:
            # Nothing new has been loaded yet, and the next program would not know of it.
            log.info("%d A reload is about to begin, and answers this one too.", os.getpid())
            self.waiting += waiting
        elif self.is_under_way:
            log.info("%d A reload is under way; another one follows it.", os.getpid())
            self._is_wanted = True
            self.waiting_for_next += waiting
        else:
            self.waiting += waiting
            # What boots in the place of one that has died, and may never do so.
            give_up(self._team.on(Duty.BOOTING))
            self._supervisor.notifier.reloading()
            self._supervisor.history.begin(self._team.generation + 1)
            self.consent.ask(self._on_consent)

    def follow_up(self) -> None:
        """What was asked for meanwhile is carried out."""
        if self._is_wanted and not self.is_under_way:
            self._is_wanted = False
            self.waiting, self.waiting_for_next = self.waiting_for_next, []
            self.ask()

    # The supervisor's program.

    def _on_consent(self, reason: str | None) -> None:
        if reason is None:
            self._fail("the worker that was asked whether a hook refuses gives no answer")
        elif reason:
            self._fail(reason)
        else:
            self._try()

    def _try(self) -> None:
        try:
            self._trial = reexec.Trial(self._team.command)
        except OSError as error:
            self._fail(f"can't start the supervisor's program: {error}")
            return
        self._loop.set(self._timer, reexec.TRIAL_TIME)

    def on_child(self, pid: int, status: int) -> None:
        """A child has ended that was no worker."""
        trial = self._trial
        if trial is None or trial.pid != pid:
            return
        self._trial = None
        self._loop.cancel(self._timer)
        lines = trial.close(status)
        if status:
            how = how_it_ended(status)
            self._fail(f"the supervisor's program can't be run; its trial {how}", lines)
        else:
            self._is_tried = True
            self.go_on()

    def go_on(self) -> None:
        """Replace the program when it can be; to be called again when a stop was refused."""
        # Not in the middle of what else has come: that would be lost with this program.
        self._loop.post(self._execute)

    def _execute(self) -> None:
        if not self._is_tried or self._supervisor.ending.consent.is_awaited:
            return
        stuck = [one for one in self._team.workers if one.channel.has_output]
        for worker in stuck:
            # Half a record would be lost with this program.
            log.error("%d Worker %d does not listen; killing it.", os.getpid(), worker.pid)
            worker.kill()
            worker.duty = Duty.DRAINING
        self._supervisor.office.finish()
        state, fds = self._supervisor.record()
        try:
            reexec.execute(self._team.command, state, fds, signals=self._supervisor.signals)
        except OSError as error:
            self._fail(f"can't run the supervisor's program: {error}")

    # The workers.

    def begin(self) -> None:
        """Replace the workers, or start the first ones."""
        self._old = [worker.pid for worker in self._team.on(Duty.SERVING)]
        self._turnover = Turnover(self._team, self._team.settings["rolling"])
        log.info("%d Supervisor starts generation %d.", os.getpid(), self._turnover.generation)
        self.advance()

    def advance(self) -> None:
        """Take it as far as it goes."""
        turnover = self._turnover
        if turnover is None:
            return
        try:
            for worker in turnover.advance():
                self._supervisor.welcome(worker)
                self._loop.set(self._timer, self._team.settings["boot_timeout"])
        except OSError as error:
            self._fail(f"can't start a worker: {error}")
            return
        if not turnover.booting():
            # An old worker may take as long as it likes.
            self._loop.cancel(self._timer)
        if turnover.is_over():
            self._succeed(turnover)

    def on_wishes(self, worker: Worker) -> None:
        """A worker has loaded its code."""
        if self._turnover is not None and self._turnover.awaits(worker):
            count = worker.wishes["settings"]["workers"]
            if not count:
                log.warning("%d workers=0 needs a new start; one worker serves.", os.getpid())
            self._turnover.want(max(count, 1))
            self.advance()

    def on_death(self, worker: Worker, how: str) -> bool:
        """A worker has ended; did the reload need it? In a rolling one, it may have served."""
        if self._turnover is None or worker not in self._turnover.new:
            return False
        lines = worker.last_lines if self._turnover.awaits(worker) else []
        self._fail(f"worker {worker.pid} {how}", lines, worker.is_seen)
        return True

    def give_up(self) -> None:
        """The service is to stop."""
        if self.is_under_way:
            log.info("%d What boots is given up.", os.getpid())
        self._drop()
        for outcome in [*self.waiting, *self.waiting_for_next]:
            outcome.error("the service is shutting down")
        self.waiting = self.waiting_for_next = []

    # The end.

    def _succeed(self, turnover: Turnover) -> None:
        self._turnover = None
        self._loop.cancel(self._timer)
        serving = self._team.on(Duty.SERVING)
        self._team.count = turnover.count
        self._team.settings = serving[-1].wishes["settings"]
        pids = [worker.pid for worker in serving]
        told = {"generation": turnover.generation, "old": self._old, "new": pids}
        self._supervisor.on_generation()
        self._is_settling = True
        old = self._team.on(Duty.DRAINING)
        self._supervisor.office.when_heard(old, partial(self._settle, told))

    def _settle(self, told: dict[str, t.Any]) -> None:
        self._is_settling = False
        self._supervisor.on_settled(told["new"])
        waiting, self.waiting = self.waiting, []
        for outcome in waiting:
            outcome.result(told)
        self.follow_up()

    def _fail(self, reason: str, lines: t.Sequence[str] = (), is_seen: bool = False) -> None:
        turnover = self._turnover
        self._drop()
        quotation = quoted([] if is_seen else lines)
        if turnover is not None and turnover.is_start:
            self._supervisor.on_failed_start(reason, quotation)
        else:
            is_mixed = turnover is not None and turnover.has_begun()
            what = "what has taken over stays" if is_mixed else "nothing has changed"
            self._supervisor.on_failure(reason, what + "." + quotation)
        waiting, self.waiting = self.waiting, []
        for outcome in waiting:
            outcome.error(reason, lines)
        self.follow_up()

    def _drop(self) -> None:
        """End what was begun and has not come to serve."""
        turnover, self._turnover = self._turnover, None
        trial, self._trial = self._trial, None
        self._is_tried = False
        self.consent.forget()
        self._loop.cancel(self._timer)
        if trial is not None:
            trial.kill()
            trial.close(1)
        if turnover is not None:
            if not turnover.has_begun():
                # Generations are counted by what has come to serve.
                self._team.generation -= 1
            give_up(turnover.booting())
            if self._team.on(Duty.SERVING):
                # What only the new ones wanted.
                self._team.close_unused()

    def _on_timeout(self) -> None:
        if self._trial is not None:
            self._trial.kill()
        elif self._turnover is not None:
            slow = self._turnover.booting()[0]
            slow.end_boot()
            seconds = self._team.settings["boot_timeout"]
            reason = f"worker {slow.pid} was not ready after {seconds:g} seconds"
            self._fail(reason, slow.last_lines, slow.is_seen)


def give_up(workers: t.Iterable[Worker]) -> None:
    """End workers that do not serve yet."""
    for worker in workers:
        worker.give_up()
