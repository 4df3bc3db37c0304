"""One client connection over TLS.

Owns what such a connection does before and beside HTTP: the handshake, its deadline, and what it
tells the application. Everything else is `connection`'s.

Strategy: the handshake is one more phase, the first. Each step goes as far as the client's bytes
allow, in the thread that the poller reported them to, and waits for nobody.

Rules: a connection in its handshake is new (row K8); a handshake that fails is one line in the log
(row F3) and no request.
"""

from __future__ import annotations

import logging
import time
import typing as t

from .connection import Connection
from .states import Phase
from .tls import HANDSHAKE_TIME, HandshakeError, PlainHTTPError, client_entries

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .host import Host
    from .wire import TLSWire

log = logging.getLogger("flask_graceful")


class SecureConnection(Connection):
    """A `Connection` that begins with a handshake."""

    __slots__ = ("_reason",)

    _wire: TLSWire

    def __init__(self, host: Host, wire: TLSWire, peer: t.Any, base: WSGIEnvironment) -> None:
        # What is encrypted can't go on in another process, which has no keys.
        super().__init__(host, wire, peer, base)
        self._phase = Phase.HANDSHAKE
        # Why the handshake failed, once it has.
        self._reason = ""

    def _first_deadline(self) -> float:
        """The nearest of three (row TM16), until the handshake is done."""
        if self._phase is not Phase.HANDSHAKE:
            return super()._first_deadline()
        settings = self._host.settings
        limits = (settings.read_header_timeout, settings.read_timeout, settings.write_timeout)
        return self.accepted + min(filter(None, limits), default=HANDSHAKE_TIME)

    def _step(self) -> None:
        if self._phase is Phase.HANDSHAKE:
            self._shake_hands()
        else:
            super()._step()

    def _shake_hands(self) -> None:
        try:
            is_done = self._wire.shake_hands()
        except PlainHTTPError:
            self._wire.refuse_plain_http()
            self._start_linger()
            return
        except HandshakeError as error:
            self._reason = str(error)
            self._end()
            return
        if is_done:
            self.add_entries(client_entries(self._wire.sock))
            self._phase = Phase.HEAD
            # The time for the first head begins here (row TM1).
            self._began = time.monotonic()
            self.deadline = self._first_deadline()
            # The client's first request may have come with its last word of the handshake.
            self._read_head()
        elif self._host.closes_idle:
            self._rest_of_idle_life()
        else:
            self._park()

    def _park(self) -> None:
        super()._park()
        if self._wire.wants_write:
            self._host.crew.poller.arm(self._fd, write=True)

    def _end(self) -> None:
        if self._phase is Phase.HANDSHAKE:
            log.warning(
                "http: TLS handshake error from %s: %s",
                self.peer_name(),
                self._reason or self._time_text(),
            )
        super()._end()

    def _time_text(self) -> str:
        """Why the server ended the handshake: too slow for its deadline, or for a shutdown."""
        is_late = self._first_deadline() <= time.monotonic()
        return "i/o timeout" if is_late else "use of closed network connection"
