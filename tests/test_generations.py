"""Many generations: restarts in a row, restarts and stops in the middle of each other, and what
travels through them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, suspend, wait_until
from steady import Fresh, Program, Steady, generation, is_gone, pending, slow_request

BOOT = "while not os.path.exists('boot'): time.sleep(0.01)"
# A process sends its SIGTERM to the old one only when the file is there. Until then its word that
# it is ready is out, and the old one has not yet given way.
LATE = """
kill = os.kill

def kill_late(pid, signum):
    print("word is out", flush=True)
    while not os.path.exists("give-way"):
        time.sleep(0.01)
    kill(pid, signum)

os.kill = kill_late
"""


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def is_refused(port: int) -> bool:
    try:
        Client(("127.0.0.1", port)).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def started(one: Live) -> list[int]:
    return [int(pid) for pid in re.findall(r"^Actual pid is (\d+)", one.log, re.MULTILINE)]


def test_two_restarts_50_ms_apart(program: Program) -> None:
    """Both are carried out, the second one by the successor, and no third one."""
    one = program.start()
    with Fresh(one.port, 2) as fresh, Steady(one.port, 4) as steady:
        for before in range(1, 10, 2):
            old = generation(one, before)
            # However late the second one comes, it is there to get it.
            with slow_request(one, old, f"done-{before}") as slow:
                os.kill(old, signal.SIGHUP)
                time.sleep(0.05)
                # The system delivers two as one while the first one waits.
                wait_until(lambda: signal.SIGHUP not in pending(old), "seen")  # noqa: B023
                os.kill(old, signal.SIGHUP)
                one.wait_for(rf"^{old} Received SIGHUP", 2)
                program.let_go(f"done-{before}")
                assert slow.response()[2] == b"%d" % old
            newest = generation(one, before + 2)
            one.wait_for(r"Serve\(\) returning", before + 1)
            steady.wait_more(50, newest)
            assert len(started(one)) == before + 2
            one.wait_for("forking", before + 1)
        assert one.log.count("forking") == 5 * 3, "each second one is told to two processes"
    assert fresh.failed == steady.refused == steady.breaks == []


def test_restart_during_a_drain(program: Program) -> None:
    """Asked for at the old process, it is passed on to the one that serves; asked for at that one,
    it begins at once. The first one still drains all the while."""
    one = program.start(old_generations=5)
    first = generation(one, 1)
    with (
        slow_request(one, first, "done") as slow,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        os.kill(first, signal.SIGHUP)
        second = generation(one, 2)
        one.wait_for(rf"^{first} Waiting for connections")
        os.kill(first, signal.SIGHUP)
        one.wait_for(rf"^{second} Told to restart\. forking\.")
        third = generation(one, 3)
        one.wait_for(rf"^{second} Waiting for connections")
        os.kill(third, signal.SIGHUP)
        fourth = generation(one, 4)
        one.wait_for(rf"^{third} Waiting for connections")
        # Through two processes that are on their way out themselves.
        os.kill(first, signal.SIGHUP)
        one.wait_for(rf"^{fourth} Told to restart\. forking\.")
        fifth = generation(one, 5)
        steady.wait_more(50, fifth)
        program.let_go("done")
        assert slow.response()[2] == b"%d" % first
        assert slow.get()[2] == b"%d" % fifth
        one.wait_for(r"Serve\(\) returning", 4)
        steady.wait_more(50, fifth)
        assert len(started(one)) == 5
    assert fresh.failed == steady.refused == steady.breaks == []


def test_restart_asked_for_when_the_successor_is_ready_and_has_not_relieved(
    program: Program,
) -> None:
    one = program.start()
    old = generation(one, 1)
    program.write(LATE)
    with Fresh(one.port, 2) as fresh, Steady(one.port, 4) as steady:
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for("^word is out")
        program.write()
        os.kill(old, signal.SIGHUP)
        one.wait_for(rf"^{old} Received SIGHUP", 2)
        program.let_go("give-way")
        newest = generation(one, 3)
        one.wait_for(rf"^{new} Told to restart\. forking\.")
        one.wait_for(r"Serve\(\) returning", 2)
        steady.wait_more(50, newest)
    assert fresh.failed == steady.refused == steady.breaks == []


def check_stopped(one: Live, fresh: Fresh, steady: Steady, *pids: int) -> None:
    """All processes have ended, the port is free, and what failed was refused."""
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid), f"the end of {pid}")
    assert is_refused(one.port)
    # Whoever hangs in a queue that nobody serves hangs here.
    fresh.stop()
    steady.stop()
    assert fresh.broken == set()
    assert all("ConnectionRefusedError" in text for text in fresh.failed + steady.refused)
    assert not [one for one in steady.breaks if one.is_failure]


def test_stop_during_a_boot(program: Program) -> None:
    """Both end, the port is free, and what has begun is finished."""
    one = program.start()
    old = generation(one, 1)
    program.write(BOOT)
    with (
        slow_request(one, old, "done") as slow,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        os.kill(old, signal.SIGHUP)
        one.wait_for("forking")
        steady.wait_more(50)
        os.kill(old, signal.SIGTERM)
        one.wait_for(rf"^{old} Stopping successor (\d+) too\.")
        one.wait_for("Restart failed")
        assert is_refused(one.port)
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        assert one.process.wait(60) == 0
        check_stopped(one, fresh, steady, old)


def test_stop_of_the_successor_that_has_just_taken_over(program: Program) -> None:
    """The service stops: the old process finishes its request, and does not serve again."""
    one = program.start()
    old = generation(one, 1)
    with (
        slow_request(one, old, "done") as slow,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        steady.wait_more(50)
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for(rf"^{old} Waiting for connections")
        os.kill(new, signal.SIGTERM)
        one.wait_for(rf"^{new} Serve\(\) returning")
        wait_until(lambda: is_refused(one.port), "the port closed")
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        assert one.process.wait(60) == 0
        check_stopped(one, fresh, steady, old, new)


@pytest.mark.parametrize("order", ["as it comes", "heard at once"])
def test_stop_of_the_successor_before_the_old_process_has_given_way(
    program: Program, order: str
) -> None:
    """It has said that it serves: a stop is then one of the service, whatever the old process gets
    to know first."""
    one = program.start()
    old = generation(one, 1)
    program.write(LATE)
    with (
        slow_request(one, old, "done") as slow,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for("^word is out")
        os.kill(new, signal.SIGTERM)
        if order == "heard at once":
            suspend(old)
        program.let_go("give-way")
        one.wait_for(rf"^{new} Serve\(\) returning")
        wait_until(lambda: is_gone(new), "the successor's end")
        os.kill(old, signal.SIGCONT)
        wait_until(lambda: is_refused(one.port), "the port closed")
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        assert one.process.wait(60) == 0
        check_stopped(one, fresh, steady, old, new)


# A signal keeps the loop from everything else until the file is there.
BLOCK = """
from flask_graceful import PRE_SIGNAL

def block():
    print("blocked", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)

server.register_signal_hook(PRE_SIGNAL, signal.SIGUSR1, block)
"""


def test_connection_on_its_way_to_a_process_that_ends_comes_back(program: Program) -> None:
    """The successor finds the order to stop and a connection at once, and has nothing else to do.
    It must not take what it can't serve any more."""
    one = program.start()
    old = generation(one, 1)
    program.write(BLOCK)
    with slow_request(one, old, "done") as slow:
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for(rf"^{old} Waiting for connections")
        os.kill(new, signal.SIGUSR1)
        one.wait_for("^blocked$")
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: signal.SIGTERM not in pending(new), "the signal seen")
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        wait_until(lambda: program.ledger().sent_away(old), "the connection sent")
        program.let_go("go")
        code, headers, body = slow.get()
        assert (code, headers["connection"], body) == (200, "close", b"%d" % old)
        assert one.process.wait(60) == 0
    assert is_refused(one.port)


def test_oldest_of_five_generations_is_cut_and_says_what(program: Program) -> None:
    """`old_generations` is 3: when a fourth old process is there, the oldest cuts its requests. The
    connections of a younger one travel through those in the middle to the newest."""
    one = program.start()
    first = generation(one, 1)
    with contextlib.ExitStack() as stack:
        steady = stack.enter_context(Steady(one.port, 4))
        oldest = stack.enter_context(slow_request(one, first, "never"))
        others = []
        for number in range(2, 6):
            os.kill(generation(one, number - 1), signal.SIGHUP)
            pid = generation(one, number)
            one.wait_for("Waiting for connections", number - 1)
            steady.wait_all(pid)
            if number < 5:
                others.append(stack.enter_context(slow_request(one, pid, "done")))
        one.wait_for(rf"^{first} 3 newer processes still finish requests; this one is the oldest\.")
        one.wait_for(rf"^{first} Cut: GET /slow of .* after \d+\.\d seconds")
        assert oldest.rest() == b""
        assert one.process.wait(60) == 0
        newest = generation(one, 5)
        program.let_go("done")
        for number, client in enumerate(others, 2):
            code, headers, body = client.response()
            assert (code, headers.get("connection")) == (200, None)
            assert int(body) == generation(one, number)
            assert int(client.get()[2]) == newest
        one.wait_for(r"Serve\(\) returning", 4)
        steady.wait_more(50, newest)
        assert steady.refused == steady.breaks == []
