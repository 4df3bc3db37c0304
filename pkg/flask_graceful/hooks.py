"""Functions of the user that a `GracefulServer` calls at points of its life.

Owns the lists of them, the decorators that fill these, and what happens when one fails.

Rules: a hook that runs before the act it belongs to may forbid it, by an exception or, where it
asks a question, by False. That is a line in the log; what it did not mean has its traceback there
too. One that runs afterwards fails alone: a line with the traceback, and everything goes on.
`sys.exit()` is an exception like others: the process has requests to serve, and ends when it is
told to.
"""

from __future__ import annotations

import logging
import os
import signal
import types
import typing as t
from opcode import opmap

from .settings import NO_FUNCTION, checked_hook, function_name

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

# How a function of the user fails.
FAILURES = (Exception, SystemExit)

# Signals that end the server, and can't mean anything else.
_ENDS = {signal.SIGINT, signal.SIGTERM}


class Hooks:
    """The hooks of one server."""

    def __init__(self) -> None:
        self.before_begin: list[BeforeBegin] = []
        self.before_restart: list[Hook] = []
        self.before_shutdown: list[Hook] = []
        self.shutdown_initiated: list[Hook] = []
        self.after_shutdown: list[Hook] = []
        self._signals: dict[tuple[int, int], list[Hook]] = {}

    def add_signal_hook(self, when: int, signum: int, func: Hook) -> None:
        """:raises ValueError: `when` is no phase, or the signal is not handled (row E5)."""
        if when not in (PRE_SIGNAL, POST_SIGNAL):
            raise ValueError(f"hook phase {when!r}: expected PRE_SIGNAL or POST_SIGNAL")
        check_signal(signum)
        checked_hook(func, "signal hook")
        self._signals.setdefault((when, int(signum)), []).append(func)

    def run_signal_hooks(self, when: int, signum: int) -> None:
        """Neither the other hooks nor the act are stopped by one that fails."""
        for func in self._signals.get((when, signum), ()):
            _call(func, SIGNALS[signum])

    def run_before_restart(self) -> str:
        """Why no successor may be started; empty when it may."""
        for func in self.before_restart:
            try:
                func()
            except FAILURES as error:
                is_meant, text = _is_meant(error), str(error)
                if not is_meant or not text or text.isdigit():
                    # An exit status, or a key that is missing, says too little.
                    text = repr(error)
                reason = f"refused by before_restart hook: {text}"
                log.error(
                    "%d Restart %s; this process goes on serving.",
                    os.getpid(), reason, exc_info=None if is_meant else error,
                )  # fmt: skip
                return reason
        return ""

    def run_before_shutdown(self) -> bool:
        """May the server stop? False, and only that, keeps it."""
        for func in self.before_shutdown:
            if _call(func, "before_shutdown") is False:
                log.info("%d Shutdown refused by before_shutdown hook.", os.getpid())
                return False
        return True

    def run_shutdown_initiated(self) -> None:
        for func in self.shutdown_initiated:
            _call(func, "shutdown_initiated")

    def run_after_shutdown(self) -> None:
        for func in self.after_shutdown:
            _call(func, "after_shutdown")


class HookPoints:
    """A server's decorators, each for one point of its process's life."""

    def __init__(self) -> None:
        self._hooks = Hooks()

    @property
    def before_begin(self) -> t.Callable[[BeforeBegin], BeforeBegin]:
        """A decorator: call the function with each listening address before serving begins (E8).

        Without such a function, the process id and each address are logged, as in endless.
        In a successor this is before the old process is told to stop: an exception here leaves
        the old one serving. Assigning a function, as the article does, replaces all others.
        """
        return self._add_before_begin

    @before_begin.setter
    def before_begin(self, func: BeforeBegin) -> None:
        self._hooks.before_begin[:] = [checked_hook(func, "before_begin", "the address")]

    def _add_before_begin(self, func: BeforeBegin = NO_FUNCTION) -> BeforeBegin:
        self._hooks.before_begin.append(checked_hook(func, "before_begin", "the address"))
        return func

    def before_restart(self, func: Hook = NO_FUNCTION) -> Hook:
        """A decorator: call the function before a successor is started (row G5). An exception
        refuses the restart: it is logged, and the process goes on serving."""
        self._hooks.before_restart.append(checked_hook(func, "before_restart"))
        return func

    def before_shutdown(self, func: Hook = NO_FUNCTION) -> Hook:
        """A decorator: ask the function whether the server may stop (row H3). False refuses; the
        next signal asks again. A successor that takes over does not ask."""
        self._hooks.before_shutdown.append(checked_hook(func, "before_shutdown"))
        return func

    def shutdown_initiated(self, func: Hook = NO_FUNCTION) -> Hook:
        """A decorator: call the function when no more is accepted and requests are waited for
        (row H3). It is waited for; those of `register_on_shutdown` are not."""
        self._hooks.shutdown_initiated.append(checked_hook(func, "shutdown_initiated"))
        return func

    def after_shutdown(self, func: Hook = NO_FUNCTION) -> Hook:
        """A decorator: call the function when this process has served its last request, whether
        the service stops or a successor goes on; `listen_and_serve` ends when it has returned."""
        self._hooks.after_shutdown.append(checked_hook(func, "after_shutdown"))
        return func

    def register_signal_hook(self, when: int, signum: int, func: Hook) -> None:
        """Call `func` at each signal, before (PRE_SIGNAL) or after (POST_SIGNAL) the server's act.

        :raises ValueError: `when` is neither, or the signal is not handled (row E5).
        :raises TypeError: the function can't be called.
        """
        self._hooks.add_signal_hook(when, signum, func)


def check_signal(signum: int, what: str = "signal", known: t.Container[int] = SIGNALS) -> None:
    """:raises ValueError: the server does not handle this signal, or not so."""
    is_known = isinstance(signum, int) and not isinstance(signum, bool) and signum in known
    if not is_known:
        names = ", ".join(f"signal.{name}" for number, name in SIGNALS.items() if number in known)
        raise ValueError(f"{what} {signum!r} is not supported; expected one of {names}")


def check_restart_signal(signum: int) -> None:
    """:raises ValueError: a restart can't be asked for with it."""
    check_signal(signum, "restart_signal", SIGNALS.keys() - _ENDS)


def _is_meant(error: BaseException) -> bool:
    """Has the hook's own code raised it, by `raise` or `sys.exit()`? Else it is an accident, or
    what others have raised, and who mends that wants to see where."""
    if isinstance(error, SystemExit):
        return True
    trace = [
        one
        for one in _steps(error.__traceback__)
        if one.tb_frame.f_globals.get("__package__") != __package__
    ]
    if not trace:
        return False
    first, last = trace[0].tb_frame.f_code, trace[-1].tb_frame.f_code
    is_raise = last.co_code[trace[-1].tb_lasti] == opmap["RAISE_VARARGS"]
    return is_raise and last.co_filename == first.co_filename


def _steps(trace: types.TracebackType | None) -> t.Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _call(func: Hook, what: str) -> object:
    try:
        return func()
    except FAILURES:
        log.exception("%d %s hook %s failed", os.getpid(), what, function_name(func))
        return None
