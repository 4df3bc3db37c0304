"""What the hooks of the application say to a reload or a stop.

Owns the question to a worker, until it is answered or can't be any more.

Rules: one worker is asked for all, since all run the same code. Who does not answer in time, or
dies instead, neither agrees nor refuses; whoever has asked decides what that means. Nobody else is
asked then: a hook that is the death of one worker would be that of all.
"""

from __future__ import annotations

import typing as t

from .loop import Loop, Timer
from .staff import Duty

if t.TYPE_CHECKING:
    from .staff import Worker
    from .team import Team

# How long a worker may take to answer, in seconds.
ANSWER_TIME = 10.0

# Takes the answer: why not, "" for consent, None when there is none.
Then = t.Callable[[str | None], object]


class Consent:
    """The loop's thread's; one question at a time.

    :param what: `restart` or `stop`.
    """

    def __init__(self, team: Team, loop: Loop, what: str) -> None:
        self._team = team
        self._loop = loop
        self._what = what
        self._asked: Worker | None = None
        self._then: Then | None = None
        self._timer = Timer(lambda: self._end(None))

    @property
    def is_awaited(self) -> bool:
        return self._asked is not None

    def ask(self, then: Then) -> None:
        """Ask a worker whether a hook refuses, where there is such a hook."""
        serving = self._team.on(Duty.SERVING)
        asked = next((one for one in serving if one.wishes["may_refuse"][self._what]), None)
        if asked is None:
            then("")
            return
        self._asked, self._then = asked, then
        asked.say({"consult": self._what})
        self._loop.set(self._timer, ANSWER_TIME)

    def on_answer(self, worker: Worker, data: dict[str, t.Any]) -> None:
        if worker is self._asked and data["consent"] == self._what:
            self._end(data["reason"])

    def on_death(self, worker: Worker) -> None:
        if worker is self._asked:
            self._end(None)

    def forget(self) -> None:
        """The answer does not matter any more."""
        self._asked = self._then = None
        self._loop.cancel(self._timer)

    def _end(self, answer: str | None) -> None:
        then = self._then
        self.forget()
        if then is not None:
            then(answer)
