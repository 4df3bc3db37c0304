"""The process that takes over, as the old one sees it.

Owns what is said between the two, from the successor's start to the end of either.

Rules: it is the same command, started anew. It inherits the listening sockets before it runs.
"""

from __future__ import annotations

import time
import typing as t

from .child import Child
from .command import OWN
from .handover import Parcel, Sender

if t.TYPE_CHECKING:
    from .listeners import Listener
    from .output import Streams


class Successor(Child):
    """The process that is to take over.

    :param listeners: what it inherits, and goes on with as far as it still has these addresses.
    :param files: descriptors that the application hands on, by their names.
    :param streams: what this process passes on for others, and the successor will.
    :param signals: does this process act on signals?
    :param generation: its number.
    :param restarts: those before it, and its own.
    :raises OSError: it can't be started.
    """

    what = "Successor"
    # It asks this process to give way, and could not do it by a signal.
    asks = False
    # How many processes have taken over after it.
    succeeded = 0
    # It stops by itself, and nobody is to take its place.
    is_leaving = False

    def __init__(
        self,
        listeners: t.Sequence[Listener],
        files: t.Mapping[str, int],
        streams: Streams,
        signals: bool,
        generation: int,
        restarts: list[dict[str, t.Any]],
    ) -> None:
        self.started = time.monotonic()
        # The addresses that it goes on with, and whether their connections are plain.
        self.listening: dict[str, bool] = {}
        # What it asks.
        self.questions: list[dict[str, t.Any]] = []
        # What it could not take.
        self.refused: list[Parcel] = []
        data = {
            "listeners": [[one.requested, one.is_ours, one.file] for one in listeners],
            "files": list(files),
            "signals": signals,
            "generation": generation,
            "restarts": restarts,
        }
        fds = [*(listener.fileno() for listener in listeners), *files.values()]
        super().__init__(OWN, data, fds, streams.fds())
        self.sender = Sender(self.channel)

    def note(self, data: dict[str, t.Any]) -> None:
        if "ready" in data:
            self.is_ready = True
            self.listening = data["ready"]
        elif "receipt" in data:
            self.refused += self.sender.on_receipt(data)
        elif "ask" in data:
            self.questions.append(data)
        self.asks = self.asks or "give_way" in data
        self.succeeded = data.get("succeeded", self.succeeded)
        self.is_leaving = self.is_leaving or "leaving" in data

    def push(self) -> None:
        self.sender.push()

    def restart(self, waiting: t.Sequence[str] = (), fds: t.Sequence[int] = ()) -> None:
        """Have it do what this process was asked to do.

        :param waiting: with the descriptors, those who wait for it.
        """
        self.say({"restart": True, "waiting": list(waiting)}, fds)

    def leave_streams(self) -> None:
        """Have it see to the pipes that were read here."""
        self.say({"streams": True})

    def stop(self, by_signal: bool) -> None:
        """Have it stop as soon as it serves, whatever its hooks say.

        :param by_signal: or end its boot, if it does not serve yet.
        """
        self.say({"stop": True})
        if by_signal:
            self.terminate()

    def let_go(self) -> None:
        """This process ends: a successor that is ready lives on, another ends with it."""
        if not self.is_ready:
            self.kill()
            self.reap()
            return
        self.channel.close()
        self.abandon()
