"""A hundred restarts in a row, many reloads, and ten thousand connections in one restart."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import statistics
import time
import typing as t
from collections import Counter
from pathlib import Path

import pytest
from conftest import Live, open_files, wait_until
from load import KeptLoad
from service import Service, check_nothing_lost
from steady import Crowd, Fresh, Program, Steady, generation, is_gone, restart


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    (tmp_path / "here").mkdir()
    return Program(tmp_path / "here", live)


def status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[0])


def descriptors(pid: int) -> Counter[str]:
    """How many of each kind are open."""
    return Counter(re.sub(r"\d+", "N", name) for name in open_files(pid))


class Traces(t.NamedTuple):
    """What a service is made of while nobody asks anything of it."""

    descriptors: Counter[str]
    threads: int
    # Of its session: those that run, and those that have ended and wait for one of these.
    processes: int
    zombies: int
    files: list[str]

    @classmethod
    def of(cls, one: Live, pid: int, directories: t.Sequence[Path]) -> Traces:
        parents: dict[int, int] = {}
        ended: list[int] = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == one.pid and state == "Z":
                    ended.append(int(parent))
                elif int(session) == one.pid:
                    parents[int(path.parent.name)] = int(parent)
        files = sorted(str(path) for place in directories for path in place.rglob("*"))
        zombies = sum(parent in parents for parent in ended)
        return cls(descriptors(pid), status(pid, "Threads"), len(parents), zombies, files)

    @classmethod
    def settled(cls, one: Live, pid: int, directories: t.Sequence[Path]) -> Traces:
        """What stays: of what has just ended there may be something for a moment."""
        seen = [cls.of(one, pid, directories)]

        def is_still() -> bool:
            time.sleep(0.1)
            seen.append(cls.of(one, pid, directories))
            return seen[-1] == seen[-2]

        wait_until(is_still, "nothing that changes")
        return seen[-1]


def test_a_hundred_restarts_under_load_leave_nothing_behind(
    program: Program, tmp_path: Path
) -> None:
    """After 10 and after 100 the service is made of the same, and needs the same memory. What is
    compared is measured in the same way: when the load is over, after a restart without load."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    places = (program.directory, temporary)
    one = program.start(f"os.environ['TMPDIR'] = {str(temporary)!r}", pid_file="pid")
    found: list[Traces] = []
    memory: list[int] = []
    seconds: list[float] = []

    def restart_in_time() -> int:
        began = time.monotonic()
        pid = restart(one, len(seconds) + 2)
        seconds.append(time.monotonic() - began)
        return pid

    with Crowd(one.port, 20) as crowd:
        for last in (10, 100):
            with Fresh(one.port, 2) as fresh, Steady(one.port, 4, pause=0.005) as steady:
                while len(seconds) < last - 1:
                    pid = restart_in_time()
                steady.wait_all(pid)
            assert fresh.failed == steady.refused == steady.breaks == []
            before, pid = pid, restart_in_time()
            wait_until(lambda: is_gone(before), "the end of the process before")  # noqa: B023
            found.append(Traces.settled(one, pid, places))
            memory.append(status(pid, "VmRSS"))
            assert (program.directory / "pid").read_text() == f"{pid}\n"
            assert crowd.ask() == {pid: 20}
    usual, longest = statistics.median(seconds), max(seconds)
    print(f"a restart took {usual:.3f} s, {longest:.3f} s at most; {memory} KiB; {found[1]}")
    assert found[0] == found[1]
    assert found[1].processes == 1 and found[1].zombies == 0
    assert abs(memory[1] - memory[0]) < memory[0] * 0.05


# How many reloads the supervisor is to bear; a hundred with `make soak`.
RELOADS = int(os.environ.get("ENDURED_RELOADS", 30))


@pytest.mark.timeout(120 + 5 * RELOADS)
def test_many_reloads_leave_nothing_behind(tmp_path: Path, live: t.Callable[..., Live]) -> None:
    """After 10 and after all of them the supervisor has the same descriptors, threads, children and
    memory, and so has the service with its two workers."""
    (tmp_path / "here").mkdir()
    service = Service(tmp_path / "here", live)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    service.start(pid_file="pid", env={"TMPDIR": str(temporary)})
    found: list[Traces] = []
    memory: list[int] = []
    with Crowd(service.port, 20) as crowd:
        for last in (10, RELOADS):
            with KeptLoad(service.port, [0.02] * 4) as kept:
                while service.generations() < last:
                    service.reload()
                kept.stop()
            check_nothing_lost(kept)
            workers = service.reload()
            assert service.processes() == {service.pid, *workers}
            found.append(Traces.settled(service.one, service.pid, (service.directory, temporary)))
            memory.append(status(service.pid, "VmRSS"))
            assert (service.directory / "pid").read_text() == f"{service.pid}\n"
            assert set(crowd.ask()) <= set(workers)
            assert not crowd.broken
    print(f"{memory} KiB; {found[1]}")
    assert found[0] == found[1]
    assert found[1].processes == 3 and found[1].zombies == 0 and found[1].threads == 1
    assert abs(memory[1] - memory[0]) < memory[0] * 0.05


# What this process and the server need beside the connections.
OTHERS = 200


@pytest.fixture
def most() -> t.Iterator[int]:
    """How many connections can be open: 10,000, or what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 10_000 + OTHERS if hard == resource.RLIM_INFINITY else min(hard, 10_000 + OTHERS)
    if limit < 1000 + OTHERS:
        pytest.skip(f"{hard} open files are too few")
    # Processes that are started inherit it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    yield limit - OTHERS
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.alone
def test_ten_thousand_idle_connections_move_within_a_second(program: Program, most: int) -> None:
    """From the moment that the successor is ready to the end of the old process, which has none
    left by then. All are served on, each on the same connection. Of three restarts the quickest
    counts, since only what else runs on the machine makes one slower."""
    one = program.start("server.conn_state = None")
    seconds: list[float] = []
    with Crowd(one.port, most) as crowd:
        for number in (2, 3, 4):
            old = generation(one, number - 1)
            os.kill(old, signal.SIGHUP)
            new = generation(one, number)
            began = time.monotonic()
            one.wait_for(rf"^{old} Serve\(\) returning")
            seconds.append(time.monotonic() - began)
            assert crowd.ask() == {new: most}
    print(f"{most} connections moved within {[f'{second:.2f}' for second in seconds]} s")
    assert min(seconds) < 1
