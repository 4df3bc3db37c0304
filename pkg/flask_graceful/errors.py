"""What a client did wrong, as an exception that knows its answer."""

from __future__ import annotations


class ProtocolError(Exception):
    """A request that has to be refused.

    :param message: what was wrong, for the client and the log.
    :param status: the status line's code and phrase that answers it.
    """

    def __init__(self, message: str, status: str = "400 Bad Request") -> None:
        super().__init__(message)
        self.status = status
