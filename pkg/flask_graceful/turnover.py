"""One change of generation, from the first start of a worker to the last that takes over.

Owns what is special while it lasts: which workers boot, how many there are to be, and when the
present ones give way.

Strategy: all at once, the next generation boots beside the present one, and nothing else happens
until all of it is ready. `rolling` starts one worker at a time, and goes on when an old one has
ended, so there is never more than one worker too many.

Rules: a new worker that ends before all of them serve ends the change, and nothing has changed. In
a rolling change those that have taken over stay.
"""

from __future__ import annotations

import typing as t

from .staff import Duty, Worker

if t.TYPE_CHECKING:
    from .team import Team


class Turnover:
    """:param rolling: one after the other."""

    def __init__(self, team: Team, rolling: bool) -> None:
        self._team = team
        self._rolling = rolling
        team.generation += 1
        self.generation = team.generation
        self.count = team.count
        self.old = team.on(Duty.SERVING)
        self.new: list[Worker] = []

    def awaits(self, worker: Worker) -> bool:
        """Would it fail without this one?"""
        return worker in self.new and worker.duty in (Duty.BOOTING, Duty.READY)

    @property
    def is_start(self) -> bool:
        """Has nothing served before?"""
        return self.generation == 1

    def has_begun(self) -> bool:
        """Do some of the new workers serve?"""
        return bool(self._serving())

    def is_over(self) -> bool:
        """Do the new workers serve, as many as there are to be, and no old one?"""
        return len(self._serving()) >= self.count and not self._present()

    def want(self, count: int) -> None:
        """So many workers the new code asks for."""
        self.count = count
        for worker in self.booting()[count:]:
            self.new.remove(worker)
            worker.give_up()

    def booting(self) -> list[Worker]:
        """Those that are waited for; one that has just died is no more."""
        return [one for one in self.new if self.awaits(one) and one in self._team.workers]

    def advance(self) -> list[Worker]:
        """Do what can be done now; the workers that were started.

        :raises OSError: one can't be started.
        """
        ready = [one for one in self.new if one.duty is Duty.READY]
        if self._rolling and self.old:
            return self._roll(ready)
        if ready and len(ready) >= self.count:
            # Those that give way to the old ones still, too.
            self._team.hand_on([*self._team.on(Duty.DRAINING), *self._present()], ready)
        return self._start(self.count - len(self.new))

    def _roll(self, ready: list[Worker]) -> list[Worker]:
        for worker in ready:
            present = self._present()
            # The last one takes over from all that are left, when there are to be fewer.
            is_last = len(self._serving()) + 1 >= self.count
            leaving = present if is_last else present[:1]
            # It alone takes over, so that it has a share like theirs.
            self._team.hand_on([*self._team.on(Duty.DRAINING), *leaving], [worker])
        is_waiting = bool(self.booting()) or any(
            one.duty is Duty.DRAINING for one in self.old if one in self._team.workers
        )
        return self._start(0 if is_waiting else min(1, self.count - len(self.new)))

    def _start(self, count: int) -> list[Worker]:
        started = []
        for _ in range(count):
            started.append(self._team.start(self.generation))
            self.new.append(started[-1])
        return started

    def _serving(self) -> list[Worker]:
        return [one for one in self.new if one in self._team.on(Duty.SERVING)]

    def _present(self) -> list[Worker]:
        """The old workers that have not given way, in the order of their start."""
        return [one for one in self._team.on(Duty.SERVING) if one not in self.new]
