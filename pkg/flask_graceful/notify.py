"""What the supervisor tells systemd: sd_notify(3).

Owns NOTIFY_SOCKET and WATCHDOG_USEC, which are taken out of the environment, so that no worker
speaks for the service, and the words of the protocol.

Rules: a message is a datagram, and nobody waits for its reader. Without a socket nothing is said.
"""

from __future__ import annotations

import os
import socket
import time
import typing as t


class Notifier:
    """:param variables: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as far as they are set."""

    NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

    def __init__(self, variables: t.Mapping[str, str]) -> None:
        self.variables = dict(variables)
        self._path = variables.get("NOTIFY_SOCKET", "")

    @classmethod
    def claim(cls, environ: t.MutableMapping[str, str]) -> Notifier:
        """Take the variables out of `environ`."""
        return cls({name: environ.pop(name) for name in cls.NAMES if name in environ})

    @property
    def watchdog_time(self) -> float:
        """Seconds between two signs of life that systemd wants to see; 0: none."""
        text = self.variables.get("WATCHDOG_USEC", "")
        is_ours = self.variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Twice as often as asked, as sd_watchdog_enabled(3) recommends.
        return int(text) / 2e6 if self._path and text.isdigit() and is_ours else 0.0

    def ready(self, status: str) -> None:
        """Start-up or a reload is over, in one way or the other."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """For Type=notify-reload the moment is part of the message (sd_notify(3))."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def extend(self, seconds: float, status: str) -> None:
        """Stopping takes this much longer."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", f"STATUS={status}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._path:
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.sendto("\n".join(lines).encode("utf-8", "replace"), address)
            except OSError:
                # Nobody listens (any more); the service goes on.
                pass
