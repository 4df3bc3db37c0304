"""Functions of the user that a `GracefulServer` calls at points of its life.

Owns the lists of them, and what happens when one fails.

Rules: a hook that runs before the act it belongs to may forbid it, by an exception or, where it
asks a question, by False. One that runs afterwards fails alone: a line in the log with the
traceback, and everything goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import typing as t

from .settings import checked_function

log = logging.getLogger("flask_graceful")

PRE_SIGNAL = 0
POST_SIGNAL = 1

# What endless listens to, as far as the system knows it. Signals that are not here keep their
# meaning.
SIGNALS = {
    int(getattr(signal, name)): name
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM", "SIGTSTP")
    if hasattr(signal, name)
}

Hook = t.Callable[[], object]
BeforeBegin = t.Callable[[str], object]

# Signals that end the server, and can't mean anything else.
_ENDS = {signal.SIGINT, signal.SIGTERM}


class Hooks:
    """The hooks of one server: each method of the same name registers one, and is a decorator."""

    def __init__(self) -> None:
        self.before_begin: list[BeforeBegin] = []
        self.before_restart: list[Hook] = []
        self.before_shutdown: list[Hook] = []
        self.shutdown_initiated: list[Hook] = []
        self._signals: dict[tuple[int, int], list[Hook]] = {}

    def add_signal_hook(self, when: int, signum: int, func: Hook) -> None:
        """:raises ValueError: `when` is no phase, or the signal is not handled (row E5)."""
        if when not in (PRE_SIGNAL, POST_SIGNAL):
            raise ValueError(f"hook phase {when!r}: expected PRE_SIGNAL or POST_SIGNAL")
        check_signal(signum)
        checked_function(func, "signal hook")
        self._signals.setdefault((when, int(signum)), []).append(func)

    def run_signal_hooks(self, when: int, signum: int) -> None:
        """Neither the other hooks nor the act are stopped by one that fails."""
        for func in self._signals.get((when, signum), ()):
            _call(func, f"{SIGNALS[signum]} hook")

    def run_before_restart(self) -> str:
        """Why no successor may be started; empty when it may."""
        for func in self.before_restart:
            try:
                func()
            except Exception as error:
                reason = f"refused by before_restart hook: {error}"
                log.error(
                    "%d Restart %s; this process goes on serving.",
                    os.getpid(), reason, exc_info=error,
                )  # fmt: skip
                return reason
        return ""

    def run_before_shutdown(self) -> bool:
        """May the server stop? False, and only that, keeps it."""
        for func in self.before_shutdown:
            if _call(func, "before_shutdown hook") is False:
                log.info("%d Shutdown refused by before_shutdown hook.", os.getpid())
                return False
        return True

    def run_shutdown_initiated(self) -> None:
        for func in self.shutdown_initiated:
            _call(func, "shutdown_initiated hook")


def check_signal(signum: int, what: str = "signal", known: t.Container[int] = SIGNALS) -> None:
    """:raises ValueError: the server does not handle this signal, or not so."""
    is_known = isinstance(signum, int) and not isinstance(signum, bool) and signum in known
    if not is_known:
        names = ", ".join(f"signal.{name}" for number, name in SIGNALS.items() if number in known)
        raise ValueError(f"{what} {signum!r} is not supported; expected one of {names}")


def check_restart_signal(signum: int) -> None:
    """:raises ValueError: a restart can't be asked for with it."""
    check_signal(signum, "restart_signal", SIGNALS.keys() - _ENDS)


def _call(func: Hook, what: str) -> object:
    try:
        return func()
    except Exception:
        log.exception("%d %s failed", os.getpid(), what)
        return None
