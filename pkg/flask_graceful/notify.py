"""What the supervisor tells systemd: sd_notify(3).

Owns NOTIFY_SOCKET and the variables of the watchdog, which are taken out of the environment, so
that no worker speaks for the service, and the words of the protocol.

Strategy: each message is a datagram to a Unix socket, by its path or by its name ('@'). A virtual
machine's host (vsock) is not told: who starts a service in a virtual machine is systemd inside it.

Rules: whatever is wrong with the socket, the service goes on, and the log says so once. Without
NOTIFY_SOCKET nothing is said. What may have been written by anybody, such as the reason of a
failure, is one line, so that it can't say anything else.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import typing as t

log = logging.getLogger("flask_graceful")

# How long a message may wait for systemd to read those before it. It always does, and a lost READY
# would have it wait for the service.
SEND_TIME = 1.0
# A message must fit into PIPE_BUF, or systemd ignores all of it; no more of a status is shown.
MOST_STATUS = 1024


class Notifier:
    """:param variables: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as far as they are set."""

    NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

    def __init__(self, variables: t.Mapping[str, str]) -> None:
        # For the program that goes on in this process.
        self.variables = dict(variables)
        self._path = variables.get("NOTIFY_SOCKET", "")
        # Does the log say that systemd can't be told?
        self._is_broken = False

    @classmethod
    def claim(cls, environ: t.MutableMapping[str, str]) -> Notifier:
        """Take the variables out of `environ`, whoever they are for."""
        return cls({name: environ.pop(name) for name in cls.NAMES if name in environ})

    @property
    def watchdog_time(self) -> float:
        """Seconds from one `watchdog` to the next: half of what systemd waits for it, as
        sd_watchdog_enabled(3) recommends. 0: it does not wait for any."""
        text = self.variables.get("WATCHDOG_USEC", "")
        pid = str(os.getpid())
        is_ours = self.variables.get("WATCHDOG_PID", pid) == pid
        is_number = text.isascii() and text.isdigit()
        return int(text) / 2e6 if self._path and is_ours and is_number else 0.0

    def ready(self, status: str) -> None:
        """The start is over; or a reload is, whether or not it has failed: the status tells."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload begins, and `ready` will follow.

        With Type=notify-reload, systemd asks for it by SIGHUP, and takes this for the answer only
        if it is of a later moment (systemd.service(5)).
        """
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}")

    def stopping(self, status: str) -> None:
        """The service ends, and nothing can change that."""
        self._send("STOPPING=1", _status(status))

    def status(self, status: str) -> None:
        self._send(_status(status))

    def extend(self, seconds: float, status: str) -> None:
        """The start or the stop goes on: there will be news within so many seconds."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", _status(status))

    def watchdog(self) -> None:
        """The service is alive."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._path:
            return
        try:
            self._deliver("\n".join(lines).encode("utf-8", "replace"))
            self._is_broken = False
        except (OSError, ValueError) as error:
            if not self._is_broken:
                self._is_broken = True
                where = ascii(self._path)[1:-1]
                log.warning(
                    "%d systemd can't be told %s: NOTIFY_SOCKET %s: %s",
                    os.getpid(), lines[0], where, error,
                )  # fmt: skip

    def _deliver(self, message: bytes) -> None:
        """
        :raises OSError: nobody takes it; ValueError: the address is none.
        """
        if self._path[0] not in "/@":
            raise ValueError("expected a path such as /run/systemd/notify, or @name")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SEND_TIME)
            is_named = self._path.startswith("@")
            sock.connect("\0" + self._path[1:] if is_named else self._path)
            sock.send(message)


def _status(text: str) -> str:
    line = " ".join(text.split())
    return "STATUS=" + line.encode("utf-8", "replace")[:MOST_STATUS].decode("utf-8", "ignore")
