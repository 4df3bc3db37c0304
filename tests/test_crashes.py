"""Processes that are killed in the middle of a restart: the port keeps answering wherever a process
is left to answer, and no request fails that the killed process did not hold."""

from __future__ import annotations

import os
import signal
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, wait_until
from steady import Crowd, Fresh, Program, Steady, generation, pending, slow_request

# A process that finds the file `strike` sends itself a signal at the note with the number in it.
STRIKE = """
if os.path.exists("strike"):
    signum, left = map(int, open("strike").read().split())
    os.unlink("strike")

    def strike(connection, state):
        global left
        note(connection, state)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signum)

    server.conn_state = strike
"""
BOOT = "while not os.path.exists('boot'): time.sleep(0.01)"


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_in_state(pid: int, state: str) -> bool:
    """Is the process stopped (T) or dead and not reaped (Z)?"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state


def test_successor_killed_while_it_boots(program: Program) -> None:
    """Nobody notices: it had no connection."""
    one = program.start()
    old = generation(one, 1)
    program.write(BOOT)
    with Fresh(one.port, 2) as fresh, Steady(one.port, 4) as steady:
        steady.wait_more(50)
        for number, seconds in enumerate((0, 0.02, 0.1), 1):
            os.kill(old, signal.SIGHUP)
            (victim,) = wait_until(lambda: children(old), "a successor")
            time.sleep(seconds)
            os.kill(victim, signal.SIGKILL)
            one.wait_for(r"was killed by SIGKILL; this process goes on serving\.", number)
            assert children(old) == []
            steady.wait_more(50, old)
        program.write()
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for(rf"^{old} Serve\(\) returning")
        steady.wait_more(50, new)
    assert fresh.failed == steady.refused == steady.breaks == []


def test_successor_killed_while_it_receives_connections(program: Program) -> None:
    """At ten moments, from just before it is ready to when it has most connections. See
    `Ledger.check_only_victim_lost` for what may break; everything else is served by the old
    process as if nothing had been, and new connections too."""
    one = program.start(STRIKE)
    old = generation(one, 1)
    known: set[str] = set()
    with (
        slow_request(one, old, "done") as slow,
        Crowd(one.port, 2000) as crowd,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 8) as steady,
    ):
        steady.wait_more(100)
        moments = (1, 300, 1000, 0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08)
        for number, moment in enumerate(moments, 2):
            if moment >= 1:
                (program.directory / "strike").write_text(f"{signal.SIGKILL:d} {moment}")
            os.kill(old, signal.SIGHUP)
            victim = generation(one, number)
            if moment < 1:
                time.sleep(moment)
                os.kill(victim, signal.SIGKILL)
            how = one.wait_for(
                rf"{victim} was killed by SIGKILL; this process (serves again|goes on serving)\."
            )
            count = len(crowd.clients)
            steady.wait_more(100, old)
            # The next round is not to find what broke in this one.
            steady.wait_each(2)
            fresh.wait_count(fresh.count + 4)
            answers = crowd.ask()
            assert set(answers) <= {old}
            broken = (crowd.broken | fresh.broken | steady.broken) - known
            known |= broken
            what = program.ledger().check_only_victim_lost(broken, victim, old)
            print(f"{moment}: {how[1]}; {what}; idle: {answers[old]} of {count} kept")
            if how[1] == "goes on serving":
                assert not broken
        os.kill(old, signal.SIGHUP)
        new = generation(one, len(moments) + 2)
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        one.wait_for(rf"^{old} Serve\(\) returning")
        steady.wait_more(100, new)
        assert set(crowd.ask()) <= {new}
    fresh.check()
    assert steady.refused == []


def test_what_a_killed_successor_has_not_confirmed_comes_back(program: Program) -> None:
    """It stops while connections are on their way to it, and is killed. What the channel still
    holds comes back: of 1,000 idle ones and those of 8 busy clients, only those break that it had
    confirmed, which is one message full at most beyond those that it has noted."""
    one = program.start(STRIKE)
    old = generation(one, 1)
    with (
        slow_request(one, old, "done"),
        Crowd(one.port, 1000) as crowd,
        Steady(one.port, 8) as steady,
    ):
        steady.wait_more(50)
        (program.directory / "strike").write_text(f"{signal.SIGSTOP:d} 10")
        os.kill(old, signal.SIGHUP)
        victim = generation(one, 2)
        wait_until(lambda: is_in_state(victim, "T"), "the successor stopped")
        wait_until(
            lambda: len(program.ledger().sent_away(old)) >= 1008, "all connections on their way"
        )
        os.kill(victim, signal.SIGKILL)
        one.wait_for(rf"{victim} was killed by SIGKILL; this process serves again\.")
        steady.wait_more(100, old)
        answers = crowd.ask()
        broken = crowd.broken | steady.broken
        print(program.ledger().check_only_victim_lost(broken, victim, old), answers)
        assert answers[old] == 1000 - len(crowd.broken) >= 1000 - 253
        assert steady.refused == []
        program.let_go("done")


def test_successor_killed_when_the_old_process_has_not_heard_it(program: Program) -> None:
    """It says that it is ready, sends its SIGTERM and dies, all while the old process is stopped:
    that reads the word, the end and the signal at once, and must not end by it."""
    one = program.start()
    old = generation(one, 1)
    program.write("server.before_begin(lambda addr: os.kill(os.getppid(), signal.SIGSTOP))")
    with Client(("127.0.0.1", one.port)) as client:
        assert client.get()[0] == 200
        os.kill(old, signal.SIGHUP)
        wait_until(lambda: is_in_state(old, "T"), "the old process stopped")
        (victim,) = children(old)
        wait_until(lambda: signal.SIGTERM in pending(old), "the successor's signal")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: is_in_state(victim, "Z"), "the successor dead")
        os.kill(old, signal.SIGCONT)
        one.wait_for(rf"{victim} was killed by SIGKILL; this process serves again\.")
        one.wait_for(rf"^{old} Received SIGTERM\.")
        assert client.get()[2] == b"%d" % old
        program.write()
        os.kill(old, signal.SIGHUP)
        new = generation(one, 3)
        one.wait_for(rf"^{old} Serve\(\) returning")
        assert client.get()[2] == b"%d" % new


def test_successor_killed_later_while_the_old_process_drains(program: Program) -> None:
    """The old one serves again, as long as a slow request keeps it: what it still has, and what
    comes anew. The next SIGHUP works, and takes all that to another successor."""
    one = program.start()
    old = generation(one, 1)
    with (
        slow_request(one, old, "done") as slow,
        Crowd(one.port, 50) as crowd,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        os.kill(old, signal.SIGHUP)
        victim = generation(one, 2)
        one.wait_for(rf"^{old} Waiting for connections")
        steady.wait_all(victim)
        assert crowd.ask() == {victim: 50}
        os.kill(victim, signal.SIGKILL)
        one.wait_for(rf"{victim} was killed by SIGKILL; this process serves again\.")
        steady.wait_more(100, old)
        assert crowd.ask() == {}
        broken = crowd.broken | fresh.broken | steady.broken
        print(program.ledger().check_only_victim_lost(broken, victim, old))
        assert len(steady.breaks) == 4 and steady.refused == []

        os.kill(old, signal.SIGHUP)
        new = generation(one, 3)
        one.wait_for(rf"^{old} Waiting for connections", 2)
        steady.wait_more(100, new)
        program.let_go("done")
        assert slow.response()[2] == b"%d" % old
        # The connection of the slow request goes on in the successor.
        assert slow.get()[2] == b"%d" % new
        one.wait_for(rf"^{old} Serve\(\) returning")
        assert len(steady.breaks) == 4
    fresh.check()


def test_old_process_killed_while_it_drains(program: Program) -> None:
    """Its slow request is lost with it, and nothing else."""
    one = program.start()
    old = generation(one, 1)
    with (
        slow_request(one, old, "never") as slow,
        Crowd(one.port, 50) as crowd,
        Fresh(one.port, 2) as fresh,
        Steady(one.port, 4) as steady,
    ):
        steady.wait_more(50)
        os.kill(old, signal.SIGHUP)
        new = generation(one, 2)
        one.wait_for(rf"^{old} Waiting for connections")
        steady.wait_all(new)
        assert crowd.ask() == {new: 50}
        os.kill(old, signal.SIGKILL)
        assert slow.rest() == b""
        steady.wait_more(100, new)
        assert crowd.ask() == {new: 50}
        os.kill(new, signal.SIGHUP)
        newest = generation(one, 3)
        one.wait_for(rf"^{new} Serve\(\) returning")
        steady.wait_more(100, newest)
        assert crowd.ask() == {newest: 50}
    assert fresh.failed == steady.refused == steady.breaks == []


def test_middle_process_killed(program: Program) -> None:
    """The way from the oldest to the newest is cut: the oldest one finishes its request, says that
    the connection ends, and leaves serving to the newest."""
    one = program.start()
    first = generation(one, 1)
    with slow_request(one, first, "done") as slow, Steady(one.port, 4) as steady:
        for number in (2, 3):
            os.kill(generation(one, number - 1), signal.SIGHUP)
            generation(one, number)
            one.wait_for("Waiting for connections", number - 1)
        second, third = (generation(one, number) for number in (2, 3))
        steady.wait_all(third)
        os.kill(second, signal.SIGKILL)
        one.wait_for(rf"^{first} Successor {second} was killed by SIGKILL\.$")
        steady.wait_more(100, third)
        program.let_go("done")
        code, headers, body = slow.response()
        assert (code, headers["connection"], body) == (200, "close", b"%d" % first)
        one.wait_for(rf"^{first} Serve\(\) returning")
        steady.wait_more(100, third)
    assert steady.refused == steady.breaks == []


def test_newest_processes_killed_one_after_the_other(program: Program) -> None:
    """Each time the next older one serves again, down to the first."""
    one = program.start()
    first = generation(one, 1)
    with slow_request(one, first, "done") as slow, Steady(one.port, 4) as steady:
        for number in (2, 3):
            os.kill(generation(one, number - 1), signal.SIGHUP)
            generation(one, number)
            one.wait_for("Waiting for connections", number - 1)
        for number in (3, 2):
            victim, older = generation(one, number), generation(one, number - 1)
            os.kill(victim, signal.SIGKILL)
            one.wait_for(rf"^{older} Successor {victim} was killed by SIGKILL; this process serves")
            steady.wait_more(100, older)
        program.let_go("done")
        assert slow.response()[2] == slow.get()[2] == b"%d" % first
        assert steady.refused == []
        os.kill(first, signal.SIGHUP)
        newest = generation(one, 4)
        one.wait_for(rf"^{first} Serve\(\) returning")
        assert slow.get()[2] == b"%d" % newest
