"""The old process, as its successor sees it.

Owns this process's end of the channel to the one that started it: what is said there, and the
connections that arrive.

Rules: a record of connections is confirmed before one of them is touched. A process that ends takes
none any more. The end of the old process is that of the channel, which the kernel closes.
"""

from __future__ import annotations

import logging
import os
import signal
import typing as t

from .channel import Channel, ChannelError, Record
from .handover import receipt, refusal, unpack

if t.TYPE_CHECKING:
    from .life import Life
    from .loop import Loop

log = logging.getLogger("flask_graceful")

OnAnswer = t.Callable[["Predecessor", dict[str, t.Any]], object]


def _to_nobody(old: Predecessor, said: dict[str, t.Any]) -> None:
    """Nobody has asked."""


class Predecessor:
    """The loop's thread's. Without an old process, nothing is said and nothing comes.

    :param life: takes the connections that arrive, as long as it can.
    """

    def __init__(self, life: Life, loop: Loop) -> None:
        self._life = life
        self._loop = loop
        self._channel: Channel | None = None
        self.pid = 0
        # Takes what the old process answers.
        self.on_answer: OnAnswer = _to_nobody

    @property
    def is_there(self) -> bool:
        """Does it live, and know of this process?"""
        return self._channel is not None

    def announce(
        self, parent: tuple[Channel, int], listening: dict[str, bool], signals: bool
    ) -> None:
        """Say that this process serves, and have the old one stop, with a SIGTERM as in endless.

        :param parent: the channel to the old process, and its pid.
        :param listening: the inherited listeners that it goes on with, and whether they are plain.
        :param signals: does the old process act on signals?
        """
        channel, pid = parent
        try:
            channel.send({"ready": listening})
            # Another parent than before is somebody else.
            if not signals or pid != os.getppid() or not _send_sigterm(pid):
                channel.send({"give_way": True})
        except OSError:
            # It has died meanwhile.
            channel.close()
            return
        self.attend(channel, pid)

    def attend(self, channel: Channel, pid: int) -> None:
        """Take the connections that come over a channel."""
        self._channel, self.pid = channel, pid
        self._loop.watch_channel(channel, self._look)

    def _look(self) -> None:
        """The old process hands connections over, has finished, or died."""
        channel = self._channel
        if channel is None:
            return
        if self._listen_to(channel):
            self._loop.rearm(channel)
            return
        self._loop.unwatch(channel.fileno())
        self.close()
        self._life.forget_parent()
        self._life.look()

    def _listen_to(self, channel: Channel) -> bool:
        """Take in what has come; False when the old process is gone."""
        try:
            is_open = channel.read(self._heed)
        except ChannelError as error:
            log.error("%d Old process %d: %s", os.getpid(), self.pid, error)
            return False
        channel.push()
        return is_open

    def _heed(self, record: Record) -> None:
        if "restart" in record.data:
            self._life.restart_for(record)
        elif "stop" in record.data:
            # The old process was told to before it knew that this one is ready.
            self._life.stop_with_others()
        elif "streams" in record.data:
            self._life.see_to_streams()
        elif "answer" in record.data:
            self.on_answer(self, record.data)
        elif self._life.takes_connections():
            # First: from now on the connections are nobody else's.
            self.say(receipt(record))
            self._life.receive(unpack(record))
        else:
            self.say(refusal(record))

    def tell_succeeded(self, count: int) -> None:
        """So many processes have taken over since: while there is one, there is no way back for
        the old one."""
        self.say({"succeeded": count})

    def tell_leaving(self) -> None:
        """This process stops, and nobody is to take its place."""
        self.say({"leaving": True})

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    def say(self, data: dict[str, t.Any]) -> None:
        """Send the old process a record, if there is one."""
        if self._channel is None:
            return
        try:
            self._channel.send(data)
        except OSError:
            # As above.
            pass


def _send_sigterm(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        # The application may have become another user.
        return False
    return True


class Predecessors:
    """Several of them: the workers that give way to this one."""

    def __init__(self, life: Life, loop: Loop) -> None:
        self._life = life
        self._loop = loop
        self._all: list[Predecessor] = []

    @property
    def is_there(self) -> bool:
        """Does any of them live?"""
        self._all = [one for one in self._all if one.is_there]
        return bool(self._all)

    def attend(self, channel: Channel, pid: int) -> None:
        """Take the connections of one more."""
        self._all.append(Predecessor(self._life, self._loop))
        self._all[-1].attend(channel, pid)

    def tell_succeeded(self, count: int) -> None:
        for one in self._all:
            one.tell_succeeded(count)

    def tell_leaving(self) -> None:
        for one in self._all:
            one.tell_leaving()

    def close(self) -> None:
        for one in self._all:
            one.close()
