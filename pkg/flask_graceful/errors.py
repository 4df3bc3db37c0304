"""Exceptions that more than one module raises."""

from __future__ import annotations


class ProtocolError(Exception):
    """A request that has to be refused.

    :param message: what was wrong, for the client and the log.
    :param status: the status line's code and phrase that answers it.
    """

    def __init__(self, message: str, status: str = "400 Bad Request") -> None:
        super().__init__(message)
        self.status = status


class ServerClosed(Exception):
    """The server was shut down or closed: what `serve` ends with (Go's ErrServerClosed)."""

    def __init__(self, message: str = "http: Server closed") -> None:
        super().__init__(message)
