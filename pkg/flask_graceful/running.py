"""A request that runs, as people want to see it: which one, for whom, how long, and where it is.

Owns the words for it, and the Python stack of the thread that runs it.

Rules: what others sent is shown without anything that could be taken for another line. A stack
is shown from the application's outermost function on; how the server got there says nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
import typing as t

if t.TYPE_CHECKING:
    from types import FrameType

_PACKAGE = os.path.dirname(__file__) + os.sep
_THREADING = threading.__file__


class RunningRequest(t.NamedTuple):
    """A request whose response is not out yet, at the moment of asking.

    :param method: as the client sent it.
    :param path: without the query; what is not printable ASCII is escaped.
    :param peer: the client's address.
    :param age: seconds since the application was called.
    :param thread: what `threading.get_ident` gives in the thread that runs it; 0: the application
        has answered, and the client is still taking it.
    """

    method: str
    path: str
    peer: str
    age: float
    thread: int

    def __str__(self) -> str:
        return f"{self.method} {self.path} of {self.peer} after {self.age:.1f} seconds"

    def stack(self) -> list[str]:
        """Where its thread is now, in lines as in a traceback; empty when there is none. A thread
        that has finished the request meanwhile shows what it does instead."""
        return thread_stack(self.thread)


def printable(path: str) -> str:
    """A path as one line of ASCII, whatever is in it."""
    return ascii(path)[1:-1]


def thread_stack(thread: int) -> list[str]:
    """The Python stack of a thread, the innermost call last, in lines as in a traceback."""
    frame = sys._current_frames().get(thread)
    frames = list(traceback.walk_stack(frame)) if frame is not None else []
    frames.reverse()
    first = next((i for i, (one, _) in enumerate(frames) if not _is_servers(one)), 0)
    summary = traceback.StackSummary.extract(iter(frames[first:]))
    return "".join(summary.format()).splitlines()


def _is_servers(frame: FrameType) -> bool:
    """Is it a step from the thread's beginning to the application?"""
    name = frame.f_code.co_filename
    return name.startswith(_PACKAGE) or name == _THREADING
