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

log = logging.getLogger("flask_graceful")


class Predecessor:
    """:param life: takes the connections that arrive, as long as it can."""

    def __init__(self, channel: Channel, pid: int, life: Life) -> None:
        self.channel = channel
        self.pid = pid
        self._life = life

    def announce(self, listening: dict[str, bool], signals: bool) -> bool:
        """Say that this process serves, and have the old one stop, with a SIGTERM as in endless.

        :param listening: the inherited listeners that it goes on with, and whether they are plain.
        :param signals: does the old process act on signals?
        :returns: False when the old process has died meanwhile.
        """
        try:
            self.channel.send({"ready": listening})
            # Another parent than before is somebody else.
            if not signals or self.pid != os.getppid() or not self._send_sigterm():
                self.channel.send({"give_way": True})
        except OSError:
            return False
        return True

    def _send_sigterm(self) -> bool:
        try:
            os.kill(self.pid, signal.SIGTERM)
        except OSError:
            # The application may have become another user.
            return False
        return True

    def listen(self) -> bool:
        """Take in what has come; False when the old process is gone."""
        is_open = True
        try:
            while is_open and (has_more := self.channel.fill()) is not None:
                is_open = has_more
                while (record := self.channel.next()) is not None:
                    self._heed(record)
            self._flush()
        except ChannelError as error:
            log.error("%d Old process %d: %s", os.getpid(), self.pid, error)
            return False
        return is_open

    def _heed(self, record: Record) -> None:
        if "restart" in record.data:
            self._life.restart()
        elif "stop" in record.data:
            # The old process was told to before this one was ready.
            self._life.stop()
        elif self._life.takes_connections():
            # First: from now on the connections are nobody else's.
            self._say(receipt(record))
            for parcel in unpack(record):
                self._life.adopt(parcel)
        else:
            self._say(refusal(record))

    def tell_succeeded(self, count: int) -> None:
        """So many processes have taken over since: while there is one, there is no way back for
        the old one."""
        self._say({"succeeded": count})

    def tell_leaving(self) -> None:
        """This process stops, and nobody is to take its place."""
        self._say({"leaving": True})

    def close(self) -> None:
        self.channel.close()

    def _say(self, data: dict[str, t.Any]) -> None:
        try:
            self.channel.send(data)
        except OSError:
            # Its end is noticed where it is read.
            pass

    def _flush(self) -> None:
        try:
            self.channel.flush()
        except OSError:
            # As above.
            pass
