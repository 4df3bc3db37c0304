"""Work that goes on beside the requests, and that a stop waits for (manners' routines).

Owns the count of it.
"""

from __future__ import annotations

import threading
import typing as t
from contextlib import contextmanager

from .settings import checked_function


class Work:
    """Counts what runs. From any thread.

    :param on_idle: called when nothing runs any more.
    """

    def __init__(self, on_idle: t.Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._on_idle = on_idle
        self.count = 0

    @contextmanager
    def track(self) -> t.Iterator[None]:
        """Count the block as one piece of work."""
        with self._lock:
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1
                is_idle = self.count == 0
            if is_idle:
                self._on_idle()

    def spawn(
        self, func: t.Callable[..., object], *args: t.Any, **kwargs: t.Any
    ) -> threading.Thread:
        """Run the function in a thread of its own; counted from before this returns."""
        checked_function(func, "spawn")
        block = self.track()
        block.__enter__()

        def run() -> None:
            try:
                func(*args, **kwargs)
            finally:
                block.__exit__(None, None, None)

        thread = threading.Thread(target=run, name="graceful-work", daemon=True)
        try:
            thread.start()
        except BaseException:
            block.__exit__(None, None, None)
            raise
        return thread
