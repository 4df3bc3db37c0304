"""The last restarts of a service, and how long each took.

Owns the list that goes from process to process with the service: a process that serves alone gives
it to its successor, a supervisor to the program that takes its place.

Rules: what has not begun can't end; whoever tells of an end need not know. Durations are by the
monotonic clock, which is one for all processes of a system.
"""

from __future__ import annotations

import time
import typing as t

# How many are remembered.
MOST_RESTARTS = 10

Json = dict[str, t.Any]


class History:
    """The loop's thread's.

    :param restarts: what the `record` of another process or program says.
    """

    def __init__(self, restarts: t.Iterable[Json] = ()) -> None:
        self._restarts: list[Json] = list(restarts)

    def record(self) -> list[Json]:
        """All of it, for whoever goes on with it."""
        return list(self._restarts)

    def rows(self) -> list[Json]:
        """The restarts as others see them, the latest first: `at` is the time of day, `ready` and
        `over` are seconds since then."""
        shown = ("generation", "at", "ready", "over", "moved", "error")
        return [{name: one[name] for name in shown} for one in reversed(self._restarts)]

    def begin(self, generation: int) -> None:
        """A restart begins that is to lead to this generation."""
        entry: Json = {"generation": generation, "at": time.time(), "clock": time.monotonic()}
        entry |= {"ready": None, "over": None, "moved": 0, "error": ""}
        self._restarts = [*self._restarts, entry][-MOST_RESTARTS:]

    def take_over(self) -> None:
        """The new code serves."""
        if self._is_booting():
            self._restarts[-1]["ready"] = _since(self._restarts[-1])

    def fail(self, reason: str) -> None:
        """The new code does not come to serve, or has died while the old one could come back."""
        if self._restarts and self._restarts[-1]["over"] is None:
            self._restarts[-1] |= {"error": reason, "over": _since(self._restarts[-1])}

    def move(self, generation: int, count: int) -> None:
        """So many connections have gone from processes of this generation to those after it."""
        for one in self._restarts:
            if one["generation"] > generation and not one["error"]:
                one["moved"] += count
                return

    def end(self, generation: int) -> None:
        """Nothing is left of the processes before this generation."""
        for one in self._restarts:
            if one["generation"] <= generation and one["over"] is None and one["ready"] is not None:
                one["over"] = _since(one)

    def _is_booting(self) -> bool:
        last = self._restarts[-1] if self._restarts else None
        return last is not None and last["ready"] is None and not last["error"]


def _since(one: Json) -> float:
    return round(time.monotonic() - t.cast("float", one["clock"]), 3)
