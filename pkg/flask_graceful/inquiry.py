"""A question to other processes, and their answers.

Owns what was asked until each of them has answered, or has had its time.

Rules: one that does not answer is not waited for: what it is asked for is often why it hangs.
"""

from __future__ import annotations

import itertools
import typing as t

from .loop import Loop, Timer

# How long a process may take, in seconds.
ANSWER_TIME = 1.0

Answers = dict[int, t.Any]


class Asked(t.Protocol):
    """A process that can be asked."""

    pid: int

    @property
    def say(self) -> t.Callable[[dict[str, t.Any]], object]:
        """Send it a record."""


class _Question:
    def __init__(self, asked: set[int], then: t.Callable[[Answers], object]) -> None:
        self.asked = asked
        self.then = then
        self.answers: Answers = {}
        self.timer = Timer(lambda: None)


class Inquiries:
    """The loop's thread's."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._open: dict[int, _Question] = {}

    def ask(
        self,
        processes: t.Sequence[Asked],
        what: dict[str, t.Any],
        then: t.Callable[[Answers], object],
    ) -> None:
        """Ask them.

        :param then: takes the answers, by pid, of those that have given one.
        """
        number = next(self._numbers)
        question = _Question({one.pid for one in processes}, then)
        question.timer = Timer(lambda: self._end(number))
        self._open[number] = question
        for one in processes:
            one.say({"ask": what, "number": number})
        self._loop.set(question.timer, ANSWER_TIME)
        self._look(number)

    def on_answer(self, one: Asked, said: dict[str, t.Any]) -> None:
        """One has answered."""
        question = self._open.get(said["number"])
        if question is not None and one.pid in question.asked:
            question.asked.discard(one.pid)
            question.answers[one.pid] = said["answer"]
            self._look(said["number"])

    def on_death(self, one: Asked) -> None:
        """One has ended, and does not answer any more."""
        for number, question in list(self._open.items()):
            question.asked.discard(one.pid)
            self._look(number)

    def end(self) -> None:
        """Nobody is waited for any more."""
        for number in list(self._open):
            self._end(number)

    def _look(self, number: int) -> None:
        if not self._open[number].asked:
            self._end(number)

    def _end(self, number: int) -> None:
        question = self._open.pop(number)
        self._loop.cancel(question.timer)
        question.then(question.answers)
