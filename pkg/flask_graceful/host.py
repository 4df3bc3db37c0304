"""What a connection needs of the server that it belongs to."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .connection import Connection
    from .crew import Crew
    from .exchange import Exchange
    from .handover import Parcel
    from .settings import Settings
    from .states import ConnState


class Host(t.Protocol):
    """A server, as its connections see it."""

    app: WSGIApplication
    settings: Settings
    crew: Crew
    # What makes an exchange; its parameters are those of `Exchange`.
    new_exchange: t.Callable[..., Exchange]
    # False: each response is its connection's last.
    keeps_alive: bool
    # True: the server stops, and serves what it has received.
    is_stopping: bool
    # True: who has nothing to ask any more is sent away.
    closes_idle: bool
    # How long who becomes idle, and was not told that it is to go, may still ask; in seconds.
    grace: float
    # Listeners whose connections go to another process as soon as they are idle.
    moving: t.Container[str]

    # What the user wants to hear of each state; None: nothing.
    conn_state: t.Callable[[Connection, ConnState], object] | None

    def on_state(self, connection: Connection, state: ConnState) -> None:
        """The connection is in a new state. Need not be called for the living ones when there
        is no `conn_state`."""

    def hand_over(self, parcel: Parcel) -> None:
        """Take a connection to the process that goes on with it. Called by its owner, before its
        state says so."""

    def on_hijack_over(self, connection: Connection) -> None:
        """The application has returned from a connection that it had taken over."""
