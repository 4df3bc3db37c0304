"""The helper that runs a program as pid 1 does what it says."""

from __future__ import annotations

import os
import signal
import typing as t
from pathlib import Path

import pytest
from conftest import wait_until
from pidns import Namespace, has_namespaces
from program import connect, is_gone, pid_from

pytestmark = pytest.mark.skipif(not has_namespaces(), reason="no pid namespaces on this machine")

PROGRAM = """
import os, signal, sys, threading, time

def stop(signum, frame):
    sys.exit(3)

def reap(signum, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGTERM, stop)
if "reap" in sys.argv:
    signal.signal(signal.SIGCHLD, reap)
print("pid", os.getpid(), "cwd", os.getcwd(), "env", os.environ.get("WORD"), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def space(tmp_path: Path) -> t.Iterator[t.Callable[..., Namespace]]:
    started: list[Namespace] = []

    def start(*words: str, text: str = PROGRAM, **options: t.Any) -> Namespace:
        (tmp_path / "program.py").write_text(text)
        started.append(Namespace("program.py", *words, cwd=tmp_path, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_the_program_is_pid_1(space: t.Callable[..., Namespace], tmp_path: Path) -> None:
    one = space(env={"WORD": "here"})
    one.live.wait_for(f"^pid 1 cwd {tmp_path} env here$")
    assert one.pids() == [one.pid]
    assert one.pid != one.live.pid
    # It has a /proc of its own.
    with one.run("ls", "/proc") as ls:
        found = [int(name) for name in ls.communicate()[0].split() if name.isdigit()]
    assert found[0] == 1
    assert os.getpid() not in found
    one.kill(signal.SIGTERM)
    assert one.wait() == 3


def test_a_signal_without_a_handler_is_lost_and_sigkill_is_not(
    space: t.Callable[..., Namespace],
) -> None:
    one = space()
    one.live.wait_for("^pid 1")
    one.kill(signal.SIGHUP)
    with one.run("kill", "-KILL", "1") as kill:
        assert kill.wait(20) == 0
    # It is still there, and has its handlers.
    one.kill(signal.SIGTERM)
    assert one.wait() == 3
    other = space()
    other.live.wait_for("^pid 1")
    other.kill(signal.SIGKILL)
    assert other.wait() != 0


def test_pid_1_gets_the_orphans(space: t.Callable[..., Namespace]) -> None:
    one = space()
    one.live.wait_for("^pid 1")
    orphans = [one.orphan(), one.orphan()]
    pids = [one.pid, *sorted(orphan.pid for orphan in orphans)]
    wait_until(lambda: one.pids() == pids, "those have gone that have started them")
    assert one.zombies() == []
    for orphan in orphans:
        assert orphan.inner not in (1, orphan.pid)
        orphan.end()
    # This program does not wait for them.
    assert not any(orphan.is_reaped() for orphan in orphans)
    assert one.zombies() == sorted(orphan.pid for orphan in orphans)


def test_orphans_that_are_waited_for_are_gone(space: t.Callable[..., Namespace]) -> None:
    one = space("reap")
    one.live.wait_for("^pid 1")
    orphan = one.orphan()
    orphan.end()
    wait_until(orphan.is_reaped, "pid 1 has waited for it")
    assert one.zombies() == []


def test_all_that_is_inside_ends_with_pid_1(space: t.Callable[..., Namespace]) -> None:
    for signum in (signal.SIGKILL, signal.SIGTERM):
        one = space()
        one.live.wait_for("^pid 1")
        orphan = one.orphan()
        one.kill(signum)
        one.wait()
        wait_until(lambda: is_gone(orphan.pid), "the orphan is gone")  # noqa: B023
        orphan.end()


def test_all_that_is_inside_ends_with_unshare(space: t.Callable[..., Namespace]) -> None:
    one = space()
    one.live.wait_for("^pid 1")
    orphan = one.orphan()
    one.live.process.kill()
    wait_until(lambda: is_gone(one.pid) and is_gone(orphan.pid), "all are gone")
    orphan.end()


def test_it_serves_on_the_loopback_of_the_host(space: t.Callable[..., Namespace]) -> None:
    one = space(
        text="""
import os
from flask_graceful import GracefulServer

def app(environ, start_response):
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

GracefulServer("127.0.0.1:0", app).listen_and_serve()
"""
    )
    port = int(one.live.wait_for(r"^1 Serving HTTP on 127.0.0.1:(\d+)")[1])
    with connect(port) as client:
        assert pid_from(client) == 1
    one.kill(signal.SIGTERM)
    one.live.wait_for(r"^1 Serve\(\) returning")
