"""The process that served alone until now, when its successor has become a supervisor.

Owns this end of the channel between the two, from the start of the supervisor until a worker has
it.

Strategy: the old process hands its connections to its successor, whatever that is. So a worker gets
the channel, and takes them as from any other process.
"""

from __future__ import annotations

import logging
import os
import socket
import typing as t

from .channel import Channel

if t.TYPE_CHECKING:
    from .staff import Worker

log = logging.getLogger("flask_graceful")


class Origin:
    """:param fd: the channel to the old process; 0: there is none.
    :param pid: the old process.
    :param names: the listeners that came from it.
    """

    def __init__(self, fd: int, pid: int, names: t.Sequence[str]) -> None:
        self._channel: Channel | None = None
        self._pid = pid
        self._names = names
        if fd:
            sock = socket.socket(fileno=fd)
            sock.set_inheritable(False)
            self._channel = Channel(sock)

    @property
    def is_there(self) -> bool:
        """Has it not given way yet?"""
        return self._channel is not None

    def give_way_to(self, worker: Worker) -> None:
        """Have the old process stop, and its connections go to this worker."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        listening = {name: worker.listening.get(name, False) for name in self._names}
        try:
            channel.send({"ready": listening})
            channel.send({"give_way": True})
            # Should the worker die, others serve: the old process is not to come back.
            channel.send({"succeeded": 1})
            worker.say({"predecessor": self._pid}, [os.dup(channel.fileno())], given=True)
            log.info("%d Graceful handoff from old pid %d", os.getpid(), self._pid)
        except OSError:
            # It has died meanwhile.
            pass
        channel.close()
