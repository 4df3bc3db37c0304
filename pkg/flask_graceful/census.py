"""What a serving process says of itself.

Owns the counts and the list of running requests, as they go to those who ask for them.

Rules: all of it is plain data, since it may come from another process than the one that is asked.
"""

from __future__ import annotations

import os
import time
import typing as t
from collections import Counter

from .states import ConnState

if t.TYPE_CHECKING:
    from .relief import ReliefServer

# When this process began, as far as it can tell.
_started = time.monotonic()


def census(servers: t.Iterable[ReliefServer], moved: t.Mapping[str, int]) -> dict[str, t.Any]:
    """What this process does now.

    :param servers: what it serves.
    :param moved: the connections that have come from other processes and gone to them, so far.
    """
    states: Counter[ConnState] = Counter()
    taken = requests = watching = tracked = 0
    for server in servers:
        states.update(one.state for one in server.connections())
        taken += len(server.taken_over())
        requests += len(server.running_requests())
        watching += len(server.watchers)
        tracked += server.tracked
    names = (ConnState.NEW, ConnState.ACTIVE, ConnState.IDLE)
    return {
        "pid": os.getpid(),
        "age": round(time.monotonic() - _started, 3),
        "connections": {**{str(one): states[one] for one in names}, "taken": taken},
        "requests": requests,
        "watching": watching,
        "moved": dict(moved),
        "tracked": tracked,
        "rss": memory_of(os.getpid()),
    }


def stranger(pid: int, generation: int, state: str) -> dict[str, t.Any]:
    """The same of a process that can't be asked: what others can see of it."""
    unknown = dict.fromkeys(("age", "connections", "requests", "watching", "moved", "tracked"))
    about = {"pid": pid, "generation": generation, "state": state}
    return {**about, **unknown, "rss": memory_of(pid)}


def running(servers: t.Iterable[ReliefServer], stacks: bool) -> list[dict[str, t.Any]]:
    """The requests that run now, the oldest first.

    :param stacks: each with the Python stack of its thread.
    """
    found = [one for server in servers for one in server.running_requests()]
    return [
        {
            "pid": os.getpid(),
            "age": round(one.age, 3),
            "method": one.method,
            "path": one.path,
            "peer": one.peer,
            **({"stack": one.stack()} if stacks else {}),
        }
        for one in sorted(found, key=lambda one: -one.age)
    ]


def memory_of(pid: int) -> int | None:
    """The bytes of memory that a process occupies; None where that is not known."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
