"""A service with workers as pid 1, as in a container: it starts, reloads, stops, and is there for
whatever processes lose their parents."""

from __future__ import annotations

import re
import signal
import typing as t
from pathlib import Path

import pytest
from conftest import Client, wait_until
from load import KeptLoad
from pidns import Namespace, has_namespaces
from service import END, PROGRAM, check_nothing_lost, check_quiet, pid_from

pytestmark = pytest.mark.skipif(not has_namespaces(), reason="no pid namespaces on this machine")


class Container:
    """The service as pid 1. In its log and its answers pids are those inside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.write()
        # What a container's processes have in common is not this machine's runtime directory.
        environ = {"RUNTIME_DIRECTORY": str(directory)}
        self.space = Namespace("program.py", cwd=directory, env=environ)
        self.log = self.space.live
        self.workers(1)
        self.port = int(self.log.wait_for(r"Serving HTTP on .*:(\d+)$")[1])

    def write(self, more: str = "") -> None:
        text = PROGRAM.replace("#ADDR", "':0'").replace("#RELEASE", "one").replace("#MORE", more)
        text = text.replace("#OPTIONS", "{'workers': 2, 'idle_grace': 0}")
        (self.directory / "program.py").write_text(text + END)

    def workers(self, generation: int) -> set[int]:
        found = self.log.wait_for(rf"^1 Generation {generation} serves with workers ([\d ]+)\.$")
        return {int(word) for word in found[1].split()}

    def reload(self, generation: int) -> set[int]:
        self.space.kill(signal.SIGHUP)
        return self.workers(generation)


@pytest.fixture
def container(tmp_path: Path) -> t.Iterator[Container]:
    one = Container(tmp_path)
    yield one
    one.space.end()


def test_nobody_notices_reloads_and_it_stops_as_asked(container: Container) -> None:
    with KeptLoad(container.port, [0.002] * 8) as load:
        for generation in range(2, 6):
            load.wait_count(load.count + 200)
            workers = container.reload(generation)
            with Client(("127.0.0.1", container.port)) as client:
                assert pid_from(client) in workers
        load.wait_count(load.count + 200)
    check_nothing_lost(load)
    wait_until(lambda: len(container.space.pids()) == 3, "the old workers have ended")
    container.space.kill(signal.SIGTERM)
    assert container.space.wait() == 0
    assert re.search("^1 Supervisor ends.$", container.log.log, re.MULTILINE)
    check_quiet(container.log)


def test_orphans_are_waited_for(container: Container) -> None:
    """Also by the program that a reload has put in its place, and while one is under way."""
    first, second, third = (container.space.orphan() for _ in range(3))
    first.end()
    wait_until(first.is_reaped, "the orphan is waited for")
    container.reload(2)
    second.end()
    wait_until(second.is_reaped, "the orphan is waited for by the next program")
    container.space.kill(signal.SIGHUP)
    third.end()
    container.workers(3)
    wait_until(third.is_reaped, "the orphan is waited for after a reload")
    # An old worker may end just now.
    wait_until(lambda: not container.space.zombies(), "all are waited for")
    with Client(("127.0.0.1", container.port)) as client:
        assert pid_from(client) in container.workers(3)


def test_a_failed_reload_leaves_the_workers(container: Container) -> None:
    workers = container.workers(1)
    container.write("raise ValueError('broken')")
    container.space.kill(signal.SIGHUP)
    container.log.wait_for(r"^1 Reload failed: worker \d+ exited with status 1; nothing")
    with Client(("127.0.0.1", container.port)) as client:
        assert pid_from(client) in workers
    container.write()
    # Generations are counted by what has come to serve.
    container.reload(2)


def test_when_pid_1_is_killed_everything_is_gone(container: Container) -> None:
    container.space.kill(signal.SIGKILL)
    assert container.space.wait() != 0
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", container.port))
