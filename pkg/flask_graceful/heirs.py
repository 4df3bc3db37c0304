"""The processes that a worker's connections go to when it gives way.

Owns a channel and a sender for each of them, and the choice between them.

Strategy: connections go round, so that the new workers get equal numbers. When the supervisor names
other heirs, because still newer ones serve, the former ones get nothing more, and are let go when
what is under way to them has arrived.

Rules: what an heir had not confirmed when it died or left goes to another one. With nobody left, it
waits here until the supervisor has said who takes over now: others, or this process again.
"""

from __future__ import annotations

import typing as t

from .channel import Channel, ChannelError
from .departures import Departures
from .handover import Sender

if t.TYPE_CHECKING:
    from .loop import Loop
    from .worker import WorkerLife


class Heir:
    """One process that takes connections."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.sender = Sender(channel)
        # Gets connections; another one has only some under way.
        self.is_present = True
        # Takes none any more, since it stops.
        self.is_leaving = False


class Heirs(Departures):
    """The loop's thread's, but for what `Departures` names."""

    _life: WorkerLife

    def __init__(self, life: WorkerLife, loop: Loop) -> None:
        super().__init__(life, loop)
        self._heirs: list[Heir] = []
        self._turn = 0

    def name(self, channels: t.Iterable[Channel]) -> None:
        """From now on connections go to these."""
        former = self._heirs
        self._heirs = [Heir(channel) for channel in channels]
        for heir in former:
            heir.is_present = False
            self._departing.extend(heir.sender.take_back_waiting())
        for heir in list(self._heirs):
            self._loop.watch_channel(heir.channel, self._listener_to(heir))
        self._heirs += former
        for heir in former:
            self._dismiss(heir)
        self.see_off()

    def see_off(self) -> None:
        present = self._present()
        while self._departing and present:
            self._turn += 1
            present[self._turn % len(present)].sender.put(self._departing.popleft())
        for heir in present:
            heir.sender.push()
            self._loop.rearm(heir.channel)

    def forget_all(self) -> None:
        """Nobody takes connections any more: those that wait come back."""
        self.is_past = self._life.is_relieved
        for heir in list(self._heirs):
            heir.is_present = False
            self._departing.extend(heir.sender.take_back_waiting())
            self._dismiss(heir)
        self._keep()

    def _keep(self) -> None:
        """What waits goes on here."""
        waiting = list(self._departing)
        self._departing.clear()
        self._take_back(waiting)

    def let_go(self) -> None:
        for heir in self._heirs:
            heir.channel.close()
            for parcel in heir.sender.take_back():
                parcel.sock.close()

    def _listener_to(self, heir: Heir) -> t.Callable[[], object]:
        return lambda: self._listen(heir)

    def _listen(self, heir: Heir) -> None:
        """The heir has confirmed something, or is gone."""
        if heir not in self._heirs:
            return
        try:
            is_open = heir.channel.read(lambda record: self._heed(heir, record.data))
        except ChannelError:
            is_open = False
        self._note_arrivals(heir.sender.take_delivered())
        if not is_open:
            self._lose(heir)
        else:
            if heir.is_leaving and heir.is_present:
                heir.is_present = False
                self._departing.extend(heir.sender.take_back_waiting())
                self._look_for_heirs()
            heir.sender.push()
            self._loop.rearm(heir.channel)
            self._dismiss(heir)
        self._life.look()

    def _heed(self, heir: Heir, data: dict[str, t.Any]) -> None:
        if "receipt" in data:
            self._take_back(heir.sender.on_receipt(data))
        heir.is_leaving = heir.is_leaving or "leaving" in data

    def _dismiss(self, heir: Heir) -> None:
        """Let an heir go that gets nothing more."""
        if not heir.is_present and heir.sender.is_empty:
            self._forget(heir)

    def _lose(self, heir: Heir) -> None:
        self._departing.extend(heir.sender.take_back())
        self._forget(heir)
        self._look_for_heirs()

    def _forget(self, heir: Heir) -> None:
        self._loop.unwatch(heir.channel.fileno())
        heir.channel.close()
        self._heirs.remove(heir)

    def _look_for_heirs(self) -> None:
        """One is gone: the others take what it had."""
        if self.is_past:
            # What was on its way to it when the end came has nobody to go to.
            self._keep()
        elif not self._present():
            self._life.ask_for_heirs()
        self.see_off()

    def _present(self) -> list[Heir]:
        return [heir for heir in self._heirs if heir.is_present]
